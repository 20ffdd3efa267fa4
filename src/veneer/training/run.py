"""A whole training run: set up, train, measure, write; or go on where it was stopped.

    result = train(TrainConfig.parse({"data": {"source": "messages.csv"}}))

The unfinished state lies in a folder beside the adapter's place (`.NAME.run`); the same call finds it there and goes on
to the same bits. It goes away when the adapter stands; what trackers write stays, in `logs/NAME`.
This file joins the parts; each part is in its own file.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from veneer.adapter import refuse_existing
from veneer.engine import choose_kernels, choose_precision, choose_threads, own_kernels, own_threads
from veneer.errors import ConfigError, Interrupted
from veneer.files import only_one, write_text
from veneer.naming import setting
from veneer.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from veneer.training.config import TrainConfig
from veneer.training.finish import Finished, finish, measure
from veneer.training.loop import StepInfo, Trained, train_loop
from veneer.training.prepare import Run, set_up
from veneer.training.resume import recall_choices_, remember, unfinished
from veneer.training.trackers import check_trackers

__all__ = ["Quiet", "Reporter", "default_out", "train"]


class Reporter(Protocol):
    """Whoever wants to follow a whole run; the command line's progress is one."""

    def say(self, text: str) -> None:
        """What is being done now, in a few words."""
        ...

    def set_up(self, run: Run, resumed_at: int) -> None:
        """The run is set up; `resumed_at` steps are done already."""
        ...

    def step(self, info: StepInfo) -> None:
        """After each step."""
        ...

    def entry(self, entry: Mapping[str, Any]) -> None:
        """After each new entry of the history."""
        ...

    def download(self, done: int, total: int | None) -> None:
        """Bytes of a download, and of the whole if known."""
        ...


class Quiet:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def set_up(self, run: Run, resumed_at: int) -> None:
        """Nothing."""

    def step(self, info: StepInfo) -> None:
        """Nothing."""

    def entry(self, entry: Mapping[str, Any]) -> None:
        """Nothing."""

    def download(self, done: int, total: int | None) -> None:
        """Nothing."""


@own_threads()
@own_kernels()
def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Finished:
    """Train an adapter and write its folder.

    Args:
        config: what to train on what.
        out: the adapter folder; default: adapters/<name of the source>.
        overwrite: replace an adapter that stands there.
        fresh: discard an unfinished run instead of going on with it.
        reporter: told how it goes.

    Raises:
        UserMistake: anything in configuration, data or base that can't be used; nothing was written.
        Interrupted: SIGINT or SIGTERM; the state is saved and the same call goes on.
        VeneerError: training diverged, or the disk is full.
    """
    began = time.monotonic()
    reporter = reporter or Quiet()
    place = Path(out) if out is not None else default_out(config.data.source)
    refuse_existing(place, overwrite=overwrite)
    folder = place.parent / f".{place.name}.run"
    accelerator = _accelerator(config, place.parent / "logs" / place.name)
    with only_one(place) if accelerator.is_main_process else nullcontext():
        return _written(config, place, folder, accelerator, reporter, began, overwrite=overwrite, fresh=fresh)


def _written(
    config: TrainConfig,
    place: Path,
    folder: Path,
    accelerator: Any,
    reporter: Reporter,
    began: float,
    *,
    overwrite: bool,
    fresh: bool,
) -> Finished:
    """The run itself, with `place` and its unfinished state in `folder` to itself."""
    if fresh and accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
    device = str(accelerator.device)
    resolved = _agreed(unfinished(folder, config), accelerator)
    run = set_up(resolved, device=device, say=reporter.say, progress=reporter.download)
    start = latest_checkpoint(folder, run.identity)
    if start is not None:
        recall_choices_(run, folder)
    elif accelerator.is_main_process:
        remember(folder, config, run)
    reporter.set_up(run, start.step if start else 0)
    trained, first_step_s = _trained(run, folder, start, reporter, accelerator, began)
    if not accelerator.is_main_process:
        accelerator.end_training()
        raise SystemExit(0)
    reporter.say("measuring")
    measured = measure(run)
    reporter.say("writing the adapter")
    done = finish(run, trained, measured, place, began=began, first_step_s=first_step_s, overwrite=overwrite)
    accelerator.end_training()
    shutil.rmtree(folder, ignore_errors=True)
    return done


def default_out(source: str) -> Path:
    """adapters/<name>: of the file without its suffix, or of the data set.

    >>> str(default_out("data/messages.csv")), str(default_out("owner/name")), str(default_out("sst2:some/place"))
    ('adapters/messages', 'adapters/name', 'adapters/sst2')
    """
    head, colon, _ = source.partition(":")
    name = head if colon and len(head) > 1 else Path(source).name
    known = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in known else name
    return Path("adapters") / (stem or "adapter")


@dataclass
class _Watcher:
    """Passes on what the loop says, and sees when the first step is done."""

    reporter: Reporter
    accelerator: Any
    began: float
    first_step_s: float = 0.0
    log: Path | None = None
    entries: list[Mapping[str, Any]] = field(default_factory=list)

    def step(self, info: StepInfo) -> None:
        """Note the first step."""
        if self.first_step_s == 0.0:
            self.first_step_s = time.monotonic() - self.began
        self.reporter.step(info)

    def entry(self, entry: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl, and tell the trackers."""
        if self.log is not None and self.accelerator.is_main_process:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(entry)) + "\n")
        numbers = {k: v for k, v in entry.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log({f"{entry['kind']}/{k}": v for k, v in numbers.items()}, step=int(entry["step"]))
        self.reporter.entry(entry)


def _trained(
    run: Run, folder: Path, start: Checkpoint | None, reporter: Reporter, accelerator: Any, began: float
) -> tuple[Trained, float]:
    log = folder / "metrics.jsonl"
    if accelerator.is_main_process:  # lines after the checkpoint belong to steps that are done again
        lines = [json.dumps(entry) + "\n" for entry in (start.progress["history"] if start else [])]
        write_text(log, "".join(lines))
    watcher = _Watcher(reporter, accelerator, began, log=log)
    evaluated = "validation" in run.stores

    def store(checkpoint: Checkpoint) -> None:
        if accelerator.is_main_process:
            save_checkpoint(folder, checkpoint)

    with _stop_signals() as stopped, _collected_once():
        try:
            trained = train_loop(
                run.adapted,
                run.examples,
                run.plan,
                run.config,
                evaluate=(lambda: _evaluation(run)) if evaluated else None,
                store=store,
                start=start,
                identity=run.identity,
                stopped=_together(stopped, accelerator),
                listener=watcher,
                accelerator=accelerator,
            )
        except Interrupted as error:
            raise Interrupted(f"{error} Run the same command again to go on.") from None
    return trained, watcher.first_step_s


def _evaluation(run: Run) -> dict[str, Any]:
    """Loss and deciding score on the validation examples, without the bootstrap; and what the task watches."""
    adapted, encoded = run.adapted, run.stores["validation"]
    outputs = adapted.outputs_of(encoded, prefix=run.prefixes.get("validation"))
    loss, decided = adapted.task.evaluation_loss(outputs, encoded), adapted.task.score(outputs, encoded)
    watch = adapted.kind.watch
    return {
        "loss": loss,
        "score_name": adapted.task.deciding.key,
        "score": decided.value,
        "standard_error": decided.standard_error,
        **({} if watch is None else {"samples": watch(adapted, encoded)}),
    }


def _accelerator(config: TrainConfig, logs: Path) -> Any:
    from accelerate import Accelerator

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Its functions have the process group of the moment as a default argument. Imported after the group is there
        # (anything may), they keep it for ever, and its threads then crash in the shutdown of Python, now and then.
        importlib.import_module("torch.distributed.nn.functional")

    check_trackers(config.trackers)
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision="no",
            log_with=list(config.trackers) or None,
            project_dir=str(logs) if config.trackers else None,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"device {config.device!r} with trackers {list(config.trackers)}: {error}"
        ) from error
    if config.device not in ("auto", accelerator.device.type):
        raise ConfigError(
            f"{setting('device')}: {config.device!r} is not to be had here; this machine offers "
            f"{accelerator.device.type!r}."
        )
    if config.trackers:
        accelerator.init_trackers("veneer")
    return accelerator


def _agreed(config: TrainConfig, accelerator: Any) -> TrainConfig:
    """The same for every process: what each would measure for itself is measured by the first."""
    if accelerator.num_processes == 1:
        return config
    from accelerate.utils import broadcast_object_list

    changes: dict[str, Any] = {}
    if config.precision in ("auto", "int8"):
        changes["precision"] = choose_precision(config.precision, accelerator.device).setting
    if config.threads == "auto":
        changes["threads"] = choose_threads("auto", accelerator.device).count
    if config.kernels == "auto":
        changes["kernels"] = choose_kernels("auto", accelerator.device).name
    return config.replace(**broadcast_object_list([changes])[0])


def _together(stopped: Callable[[], bool], accelerator: Any) -> Callable[[], bool]:
    """Whether any process was asked to stop, so that all stop after the same step."""
    if accelerator.num_processes == 1:
        return stopped

    def any_stopped() -> bool:
        asked = torch.tensor(float(stopped()), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

    return any_stopped


@contextmanager
def _collected_once() -> Iterator[None]:
    """Leave what stands already out of the garbage collections of the loop: libraries alone are a million objects."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask the loop to stop after its step; a second one ends at once."""
    asked: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
