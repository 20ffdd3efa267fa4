"""What was measured, as data: to JSON and back."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.machine import Machine

__all__ = ["Figure", "Results", "SideResult", "WorkloadResult"]


@dataclass(frozen=True)
class Figure:
    """The median of the rounds, and the least and the most of them; `rounds` has them all."""

    median: float
    least: float
    most: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Figure:
        """From the rounds."""
        return cls(statistics.median(rounds), min(rounds), max(rounds), tuple(rounds))

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Figure:
        """The opposite of `asdict`."""
        return cls(**{**given, "rounds": tuple(given["rounds"])})


@dataclass(frozen=True)
class SideResult:
    """One side of a workload.

    Attributes:
        name: "a", "b", "c", "ours", or "ours without ...".
        texts_per_s: over an epoch; what is done once for a run is not in it.
        of_floor: share of the time that the floor takes; for a whole run where the workload is one.
        peak_bytes: of the process, from its start to its end.
        steps: measured ones.
        step_ms: the median step.
        once_s: seconds of what is done once for a run.
        whole_s: seconds of the whole run, extrapolated from the measured steps; None where there are no epochs.
        parameters: trained ones.
    """

    name: str
    texts_per_s: Figure
    of_floor: Figure
    peak_bytes: int
    steps: int
    step_ms: float
    once_s: float
    whole_s: Figure | None
    parameters: int

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> SideResult:
        """The opposite of `asdict`."""
        figures = {key: Figure.from_json(given[key]) for key in ("texts_per_s", "of_floor")}
        whole = None if given["whole_s"] is None else Figure.from_json(given["whole_s"])
        return cls(**{**given, **figures, "whole_s": whole})


@dataclass(frozen=True)
class WorkloadResult:
    """All sides of a workload.

    Attributes:
        name, title: of the workload.
        texts, tokens: in an epoch, real ones.
        precision: of ours, (b) and (c).
        gemm_gflops: measured for this model's shapes, by dtype.
        sides: by name.
        loss_difference: largest relative difference of our losses and a baseline's; None for a prediction.
    """

    name: str
    title: str
    texts: int
    tokens: int
    precision: str
    gemm_gflops: Mapping[str, float]
    sides: Mapping[str, SideResult]
    loss_difference: float | None

    def ratio(self, other: str, side: str = "ours") -> Figure | None:
        """How many times faster `side` is than `other`, round by round; None where `other` was not measured."""
        if other not in self.sides or side not in self.sides:
            return None
        one, two = self.sides[side], self.sides[other]
        if one.whole_s is not None and two.whole_s is not None:
            pairs = zip(two.whole_s.rounds, one.whole_s.rounds, strict=True)
        else:
            pairs = zip(one.texts_per_s.rounds, two.texts_per_s.rounds, strict=True)
        return Figure.of([x / y for x, y in pairs])

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> WorkloadResult:
        """The opposite of `asdict`."""
        sides = {name: SideResult.from_json(side) for name, side in given["sides"].items()}
        return cls(**{**given, "sides": sides})


@dataclass(frozen=True)
class Results:
    """A run of the benchmark.

    Attributes:
        machine: where.
        when: UTC, ISO 8601.
        seconds: the whole run.
        quick: with so few steps that the figures say little.
        workloads: in order.
        ablations: ours with all techniques, and with one switched off each; measured apart, with `ours` in turn.
        left_out: workload and reason.
    """

    machine: Machine
    when: str
    seconds: float
    quick: bool
    workloads: tuple[WorkloadResult, ...]
    ablations: tuple[WorkloadResult, ...]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Results:
        """The opposite of `to_json`."""
        machine = {**given["machine"], "flags": tuple(given["machine"]["flags"])}
        lists = {
            key: tuple(WorkloadResult.from_json(workload) for workload in given[key])
            for key in ("workloads", "ablations")
        }
        return cls(**{**given, **lists, "machine": Machine(**machine)})
