"""One workload measured: every side in a process of its own, in rounds, A B A B.

The sides are set up first and then take turns, each waiting while another computes. All go through the same batches in
the same order. The figure of a side is texts a second over a whole epoch: its seconds per computed token (padding
included) times the tokens that it computes in an epoch, so that a short measurement of long texts misleads nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import floor
from benchmarks.machine import gemm_rate
from benchmarks.materials import Materials
from benchmarks.results import Figure, SideResult, WorkloadResult
from benchmarks.side import Measured, SideSpec
from benchmarks.workloads import Workload
from veneer.engine import choose_precision

__all__ = ["FAST", "FULL", "Effort", "SideFailedError", "measure"]

ROOT = Path(__file__).resolve().parents[1]
BASELINES = ("a", "b", "c")
_LEAST_STEPS = 2  # of a round
_LEAST_ROUND = 0.5  # of the time of (b)'s
_LEAST_WARM = 6  # steps before the first round that is measured


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: turns of each side that are measured; in training one more goes before them.
        round_s: seconds of a round of baseline (b); ours does the same steps.
        warm_up: steps by which the length of a round is decided.
        gemm_s: seconds for the GEMM rate of one dtype.
        steps: steps of a round; None: by `round_s`.
        texts: use only so many texts; None: all.
        ablation_texts: so many for the sides with a technique switched off, a tenth of them for a prediction.
    """

    rounds: int = 3
    round_s: float = 6.0
    warm_up: int = 2
    gemm_s: float = 1.5
    steps: int | None = None
    texts: int | None = None
    ablation_texts: int = 4000

    @property
    def ablation(self) -> Effort:
        """Shorter, for a side of ours with a technique switched off; a round is ours' own."""
        return replace(self, rounds=max(1, self.rounds - 1), round_s=self.round_s / 4, warm_up=1, gemm_s=0.2)


FULL = Effort()
FAST = Effort(rounds=2, round_s=1.0, warm_up=1, gemm_s=0.4, steps=2, texts=1000)


class SideFailedError(Exception):
    """A side's process ended before its work was done; the message has its last words."""


class _Process:
    """A side in its process."""

    def __init__(self, name: str, spec: SideSpec) -> None:
        self.name = name
        places = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(place for place in places if place),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        # A file, not a pipe: one that nobody reads would fill up.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side", spec.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self.about: dict[str, Any] = {}
        self.done = 0
        self.rounds: list[Measured] = []
        self.losses: list[float] = []

    def start(self) -> None:
        """Wait until it is set up."""
        self.about = self._read()

    def run(self, steps: int) -> Measured:
        """Do so many further steps."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says what happened
            self._process.stdin.write(f"{self.done} {self.done + steps}\n")
            self._process.stdin.flush()
        self.done += steps
        found = Measured(**self._read())
        self.losses += found.losses
        return found

    def finish(self) -> int:
        """End it; its peak memory in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = int(self._read()["peak_bytes"])
        self._process.wait(timeout=60)
        return peak

    def kill(self) -> None:
        """End it whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read()[-3000:]
            last = said.strip().splitlines()[-1] if said.strip() else "nothing was said"
            print(said, file=sys.stderr)
            raise SideFailedError(f"side {self.name} ended with {self._process.returncode}: {last}")
        found: dict[str, Any] = json.loads(line)
        return found


def measure(
    workload: Workload,
    materials: Materials,
    effort: Effort,
    *,
    off: Sequence[tuple[str, ...]] = (),
    sides: Sequence[str] = BASELINES,
    say: Callable[[str], None] = lambda _: None,
) -> WorkloadResult:
    """Measure a workload.

    Args:
        workload: what.
        materials: made for it.
        effort: how long.
        off: techniques to switch off, one further side of ours each.
        sides: which baselines.
        say: told what is being done.
    """
    ids, offsets, _ = materials.read_texts()
    lengths = np.diff(offsets)
    tokens = int(lengths.mean() * workload.batch_size) if workload.train else 2048
    shapes = workload.floor_model.shapes()
    precision: Any = choose_precision("auto", torch.device("cpu")).name
    dtypes = {"fp32": torch.float32}
    if precision == "bf16":  # elsewhere a product in bf16 takes up to a hundred times as long
        dtypes["bf16"] = torch.bfloat16

    def measured() -> dict[str, float]:
        return {
            name: gemm_rate(shapes, tokens, dtype, budget_s=effort.gemm_s) for name, dtype in dtypes.items()
        }

    rates = measured()
    processes: list[_Process] = []
    try:
        _start_(processes, workload, materials, precision, sides, off)
        _rounds(workload, processes, effort, say)
        rates = {name: max(rates[name], rate) for name, rate in measured().items()}
        peaks = {process.name: process.finish() for process in processes}
    finally:
        for process in processes:
            process.kill()
    texts = [ids[a:b].tolist() for a, b in pairwise(offsets)] if workload.epochs else []
    once = floor.prefix(workload.floor_model, texts) if workload.epochs else 0
    results = {
        p.name: _result(workload, p, peaks[p.name], len(lengths), rates, precision, once) for p in processes
    }
    return WorkloadResult(
        name=workload.name,
        title=workload.title,
        texts=len(lengths),
        tokens=int(lengths.sum()),
        precision=precision,
        gemm_gflops=rates,
        sides=results,
        loss_difference=_loss_difference(processes),
    )


def _start_(
    processes: list[_Process],
    workload: Workload,
    materials: Materials,
    precision: Any,
    sides: Sequence[str],
    off: Sequence[tuple[str, ...]],
) -> None:
    """Put the sides' processes into `processes`, as they are started, and wait until all are set up."""
    names = [*sides, "ours", *(f"ours without {', '.join(switched)}" for switched in off)]
    switched_off = [*[()] * (len(sides) + 1), *off]
    for name, switched in zip(names, switched_off, strict=True):
        kind = name if name in BASELINES else "ours"
        spec = SideSpec(kind, workload.name, materials.to_json(), precision, tuple(switched))
        processes.append(_Process(name, spec))
        if workload.epochs:
            processes[-1].start()  # the pass that is done once is measured alone
    if not workload.epochs:
        for process in processes:
            process.start()


def _rounds(
    workload: Workload, processes: Sequence[_Process], effort: Effort, say: Callable[[str], None]
) -> None:
    """Warm up, decide how many steps a round has, and take turns."""
    first = {p.name: 1 if p.name == "a" and not workload.train else effort.warm_up for p in processes}
    step_s = {p.name: min(p.run(first[p.name]).seconds) for p in processes}
    steps = {}
    for process in processes:
        # In training ours and (c) do as many steps as (b), and so many more that their first ones, with cold caches
        # after another side's turn, weigh little; a prediction of ours is one step, of all texts.
        common = "b" if "b" in step_s else "ours"
        alone = process.name == "a" or not workload.train
        least = 1 if alone else max(_LEAST_STEPS, int(_LEAST_ROUND * effort.round_s / step_s[process.name]))
        like = process.name if alone else common
        steps[process.name] = effort.steps or max(least, int(effort.round_s / step_s[like]))
    for process in processes if workload.train else ():
        # Kernels for new shapes, first touches of memory. (a) has one shape; without (b) it has to keep in step.
        if process.name != "a" or "b" not in steps:
            process.run(effort.steps or max(_LEAST_WARM, steps[process.name]))
    for number in range(effort.rounds):
        for process in processes:
            found = process.run(steps[process.name])
            process.rounds.append(found)
            per_s = sum(map(len, found.lengths)) / sum(found.seconds)
            say(f"{workload.name}  round {number + 1}  {process.name:<24} {per_s:8.1f} texts/s as they come")


def _result(
    workload: Workload,
    process: _Process,
    peak: int,
    texts: int,
    rates: dict[str, float],
    precision: str,
    once: int,
) -> SideResult:
    fp32 = process.name == "a" or process.name.endswith("bf16")
    rate = rates["fp32" if fp32 else precision] * 1e9
    model, start = workload.floor_model, workload.floor_model.first_adapted if workload.epochs else 0
    per_s, shares, whole, whole_floor = [], [], [], []
    for found in process.rounds:
        seconds = sum(found.seconds)
        epoch_s = seconds / found.computed * process.about["computed_per_epoch"]
        per_s.append(texts / epoch_s)
        labelled = [(n, seen) for n, seen in found.labelled] or [None] * len(found.lengths)
        flops = sum(
            floor.step(model, n, train=workload.train, start=start, labelled=read)
            for n, read in zip(found.lengths, labelled, strict=True)
        )
        shares.append(flops / rate / seconds)
        if workload.epochs:
            run_s = workload.epochs * epoch_s + process.about["once_s"]
            whole.append(run_s)
            whole_floor.append((workload.epochs * epoch_s * shares[-1] + once / rate) / run_s)
    return SideResult(
        name=process.name,
        texts_per_s=Figure.of(per_s),
        of_floor=Figure.of(whole_floor or shares),
        peak_bytes=peak,
        steps=sum(len(found.seconds) for found in process.rounds),
        step_ms=1e3 * statistics.median(s for found in process.rounds for s in found.seconds),
        once_s=float(process.about["once_s"]),
        whole_s=Figure.of(whole) if whole else None,
        parameters=int(process.about["parameters"]),
    )


def _loss_difference(processes: Sequence[_Process]) -> float | None:
    """Largest difference of our losses and (b)'s over their common steps, over the mean loss; None: no losses."""
    found = {p.name: p.losses for p in processes}
    other = "b" if "b" in found else "a"
    pairs = list(zip(found["ours"], found.get(other, []), strict=False))
    if not pairs:
        return None
    return max(abs(x - y) for x, y in pairs) / statistics.mean(y for _, y in pairs)
