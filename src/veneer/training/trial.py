"""A few real steps of a run that is set up, for an estimate: which steps are worth a trial, and what they took.

The steps are the training loop's own. This file knows runs and the loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.errors import Interrupted
from veneer.training.loop import StepInfo, train_loop
from veneer.training.prepare import Run
from veneer.training.schedule import Plan

__all__ = ["Trial", "Weights", "run_trial"]


@dataclass(frozen=True)
class Weights:
    """How heavy the plan's steps are.

    Attributes:
        tokens: (steps of the first epoch,) tokens of each.
        largest: (the same steps,) tokens of the largest batch of each, on which the memory depends.
        epochs: passes.
        all_tokens: of the whole run.
    """

    tokens: NDArray[np.int64]
    largest: NDArray[np.int64]
    epochs: int
    all_tokens: int

    @classmethod
    def of(cls, run: Run) -> Weights:
        """From the lengths of the training texts and the plan's order; nothing is computed with the model."""
        lengths = run.stores["train"].lengths.astype(np.int64)
        steps = [
            [int(lengths[rows].sum()) for rows in run.plan.batches(i)]
            for i in range(run.plan.steps_per_epoch)
        ]
        tokens = np.array([sum(batches) for batches in steps], np.int64)
        largest = np.array([max(batches) for batches in steps], np.int64)
        return cls(tokens, largest, run.plan.epochs, int(lengths.sum()) * run.plan.epochs)

    @property
    def heaviest(self) -> int:
        """The step with the largest batch."""
        return int(self.largest.argmax())

    def step_at(self, share: float) -> int:
        """The step at this place among all, by tokens: 0.5 is the median."""
        order = np.argsort(self.tokens, kind="stable")
        return int(order[min(len(order) - 1, int(share * len(order)))])


@dataclass(frozen=True)
class TrialPlan(Plan):
    """Some steps of a plan, in an order of their own."""

    chosen: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """How many are run."""
        return len(self.chosen)

    def batches(self, step: int) -> list[NDArray[np.int64]]:
        """The rows of each batch of the step-th chosen one, from 0."""
        return super().batches(self.chosen[step])


@dataclass
class Trial:
    """Listens to a few steps.

    Attributes:
        seconds, tokens: of each step.
        stop_at: on `time.perf_counter`'s clock.
    """

    stop_at: float
    began: float = field(default_factory=time.perf_counter)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def step(self, info: StepInfo) -> None:  # noqa: ARG002
        """A step is finished."""
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now

    def entry(self, entry: Mapping[str, Any]) -> None:
        """Nothing."""

    def stopped(self) -> bool:
        """Asked after each step."""
        return time.perf_counter() > self.stop_at and len(self.seconds) > 1

    def add(self, other: Trial) -> None:
        """The other's steps as well."""
        self.seconds += other.seconds
        self.tokens += other.tokens

    def fitted(self) -> tuple[float, float]:
        """Seconds a step and seconds a token, neither of them negative; the first step, which warms up, is left out."""
        seconds = np.array(self.seconds[1:] or self.seconds)
        tokens = np.array(self.tokens[-len(seconds) :], np.float64)
        per_token = float(seconds.sum() / tokens.sum())
        if len(seconds) < 3 or np.ptp(tokens) == 0:
            return 0.0, per_token
        slope, at_zero = np.polyfit(tokens, seconds, 1)
        if slope <= 0:
            return float(seconds.mean()), 0.0
        return (float(at_zero), float(slope)) if at_zero >= 0 else (0.0, per_token)


def run_trial(run: Run, steps: list[int], budget_s: float) -> Trial:
    """Run these steps of the plan for real."""
    plan, lengths = run.plan, run.stores["train"].lengths
    trial = Trial(stop_at=time.perf_counter() + budget_s)
    chosen = TrialPlan(
        plan.examples, plan.batch_size, plan.accumulation, plan.epochs, plan.seed, tuple(steps)
    )
    trial.began = time.perf_counter()
    with contextlib.suppress(Interrupted):
        train_loop(
            run.adapted,
            run.examples,
            chosen,
            run.config,
            evaluate=None,
            stopped=trial.stopped,
            listener=trial,
        )
    trial.tokens = [
        sum(int(lengths[rows].sum()) for rows in chosen.batches(i)) for i in range(len(trial.seconds))
    ]
    return trial
