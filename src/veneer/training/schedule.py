"""Which texts come when, and at which rate: pure functions of the seed and the step.

Nothing here has a state, so a run that goes on from a checkpoint does exactly what it would have done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plan", "default_batch_size", "default_epochs", "rate_factor"]


@dataclass(frozen=True)
class Plan:
    """The order of a run.

    Attributes:
        examples: N, the number of training texts.
        batch_size: texts in a batch.
        accumulation: batches in a step.
        epochs: passes over the texts.
        seed: decides the order.
    """

    examples: int
    batch_size: int
    accumulation: int
    epochs: int
    seed: int

    @property
    def texts_per_step(self) -> int:
        """Texts in a step of the optimiser (the last of an epoch may have fewer)."""
        return self.batch_size * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass."""
        return math.ceil(self.examples / self.texts_per_step)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.steps_per_epoch * self.epochs

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """(N,) the texts in the order of this epoch."""
        return _order(self.seed, epoch, self.examples)

    def batches(self, step: int) -> list[NDArray[np.int64]]:
        """The texts of a step, a batch each."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = self.epoch_order(epoch)
        texts = order[index * self.texts_per_step : (index + 1) * self.texts_per_step]
        return [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    """The permutation of an epoch; kept, for every step asks for it."""
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    order.flags.writeable = False
    return order


def rate_factor(
    step: int, steps: int, warmup: float, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """The share of the peak rate at a step: up in a line, then as the schedule says, 0 after the last step."""
    rising = math.ceil(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    done = (step - rising) / max(1, steps - rising)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def default_batch_size(texts: int, tokens: int) -> int:
    """32 where there are enough short texts for it: the same accuracy in two thirds of the time; else 16."""
    return 32 if texts >= 1_000 and tokens <= 64 * texts else 16


def default_epochs(examples: int) -> int:
    """Passes that are enough without tuning: more for few texts, fewer for many."""
    if examples < 5_000:
        return 5
    return 3 if examples < 20_000 else 2
