"""How soon a run with Veneer's defaults is as good on the spam recipe's test set as the source was in the end.

    python -m benchmarks.time_to_accuracy --seeds 5

The source: 97.33 % of 300 test texts after 12.10 minutes (GPT-2 small, LoRA on every linear layer, five epochs, on the
author's machine). Here: the recipe's own rows and split, and everything else as `veneer train` chooses it. The clock
starts before the rows are read and the base is loaded; it stands still while the test set is answered, every few steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Reached", "main", "reach"]

ROOT = Path(__file__).resolve().parents[1]
SOURCE_MINUTES = 12.10


@dataclass(frozen=True)
class Reached:
    """One run.

    Attributes:
        seed: of the run.
        setup_s: reading, loading and tokenising.
        seconds: from the very start to the first time that the test set is as good; None: never.
        step, steps: when that was, and all steps of the run.
        run_s: the whole run, answering the test set left out.
        last: accuracy on the test set at the end.
    """

    seed: int
    setup_s: float
    seconds: float | None
    step: int | None
    steps: int
    run_s: float
    last: float


class _Watch:
    """Listens to the loop: answers the test set every few steps, with the clock stopped."""

    def __init__(self, run: Any, began: float, every: int, wanted: float) -> None:
        self.run, self.began, self.every, self.wanted = run, began, every, wanted
        self.stopped_s = 0.0
        self.seconds: float | None = None
        self.at: int | None = None
        self.last = 0.0

    @property
    def clock(self) -> float:
        """Seconds since the start, answering left out."""
        return time.perf_counter() - self.began - self.stopped_s

    def step(self, info: Any) -> None:
        """After each step."""
        if info.step % self.every and info.step != info.steps:
            return
        from veneer.training.loop import set_mode_

        paused, now = time.perf_counter(), self.clock
        adapted, test = self.run.adapted, self.run.stores["test"]
        adapted.model.eval()
        self.last = adapted.task.score(adapted.outputs_of(test), test).value
        set_mode_(adapted.model, self.run.config)
        if self.seconds is None and self.last >= self.wanted:
            self.seconds, self.at = now, info.step
        self.stopped_s += time.perf_counter() - paused

    def entry(self, entry: Mapping[str, Any]) -> None:
        """Nothing to do."""


def reach(source: str, seed: int, *, every: int, wanted: float, settings: Mapping[str, Any]) -> Reached:
    """Train once with the defaults, and watch the test set.

    Args:
        source: as for `veneer train`.
        seed: of the run.
        every: steps between two looks at the test set.
        wanted: accuracy, in [0, 1].
        settings: further fields of `TrainConfig`.
    """
    from veneer.training.config import TrainConfig
    from veneer.training.loop import train_loop
    from veneer.training.prepare import set_up

    began = time.perf_counter()
    data = {"source": source, "variant": "balanced"} if source.startswith("sms-spam:") else {"source": source}
    run = set_up(TrainConfig.parse({"data": data, "seed": seed, **settings}))
    watch = _Watch(run, began, every, wanted)
    setup_s = watch.clock
    train_loop(run.adapted, run.examples, run.plan, run.config, evaluate=None, listener=watch)
    return Reached(seed, setup_s, watch.seconds, watch.at, run.plan.steps, watch.clock, watch.last)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a run, and the median. Returns 1 where the data set is not here."""
    options = _parser().parse_args(arguments)
    sys.path.insert(0, str(ROOT / "src"))
    folder = options.data / "sms_spam"
    if not folder.is_dir():
        print(f"{folder} is not on this machine (--data names the folder of data sets)", file=sys.stderr)
        return 1
    found = []
    for seed in range(options.seeds):
        one = reach(
            f"sms-spam:{folder}", seed, every=options.every, wanted=options.accuracy / 100, settings={}
        )
        found.append(one)
        print(json.dumps(asdict(one)) if options.json else _line(one, options.accuracy), flush=True)
    if not options.json:
        print(_summary(found, options.accuracy))
    return 0


def _summary(found: Sequence[Reached], accuracy: float) -> str:
    reached = sorted(one.seconds for one in found if one.seconds is not None)
    median = f"{statistics.median(reached):.1f} s in the median" if reached else "never"
    whole = statistics.median(one.run_s for one in found)
    last = statistics.fmean(one.last for one in found)
    return (
        f"{len(reached)} of {len(found)} runs reached {accuracy:g} %: {median}, against {SOURCE_MINUTES:.2f} minutes "
        f"of the source. Whole runs: {whole:.1f} s, {100 * last:.2f} % at their end (mean)."
    )


def _line(one: Reached, accuracy: float) -> str:
    when = "never" if one.seconds is None else f"after {one.seconds:.1f} s (step {one.step} of {one.steps})"
    return (
        f"seed {one.seed}: {accuracy:g} % {when}; set-up {one.setup_s:.1f} s, the whole run {one.run_s:.1f} s, "
        f"{100 * one.last:.2f} % at its end"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_accuracy", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds 0, 1, ...")
    parser.add_argument("--every", type=int, default=5, help="steps between two looks at the test set")
    parser.add_argument("--accuracy", type=float, default=97.33, help="percent")
    parser.add_argument("--json", action="store_true", help="a line of JSON a run")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of data sets"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
