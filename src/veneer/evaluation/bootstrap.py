"""Confidence intervals by resampling counts instead of rows.

A metric of a confusion table depends on the rows only through how often each kind of row occurs (which label
was given, which was predicted). Drawing N rows with replacement therefore has the same law as drawing the
counts of the P kinds from a multinomial distribution: the cost of a resample is P, not N, and the memory is
bounded whatever N is. Efron, B. and Tibshirani, R., An Introduction to the Bootstrap (1993), chapters 6 and
13 (percentile intervals).

This module knows numbers only: no label, no text, no picture.

Letters: P kinds of rows, F sums read from them, S resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Difference", "Interval", "accuracy_interval", "paired_difference", "percentile", "resampled_sums"]

_CELLS_AT_ONCE = 4_000_000  # counts held at a time: 32 MB


@dataclass(frozen=True)
class Interval:
    """A confidence interval from `low` to `high`, in the metric's own unit.

    `method` is "bootstrap" (percentile), "binomial" (the exact bound of Clopper and Pearson, where every
    answer or none is right and the bootstrap would give an interval of width zero) or "none" (no interval can
    be given: low and high are the value itself).
    """

    low: float
    high: float
    confidence: float = 0.95
    method: str = "bootstrap"

    @property
    def name(self) -> str:
        """What to call it: "95 % interval"."""
        return f"{100 * self.confidence:g} % interval"

    def to_json(self) -> dict[str, Any]:
        """Plain data for veneer.json and `--json`."""
        return {"low": self.low, "high": self.high, "confidence": self.confidence, "method": self.method}


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs on the same rows, with its interval; positive means that ours is better."""

    value: float
    interval: Interval

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "level" where the interval holds zero."""
        if self.interval.low > 0:
            return "better"
        return "worse" if self.interval.high < 0 else "level"

    def to_json(self) -> dict[str, Any]:
        """Plain data for veneer.json and `--json`."""
        return {"value": self.value, "interval": self.interval.to_json(), "verdict": self.verdict}


def resampled_sums(
    counts: NDArray[np.int64], features: csr_array, *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """For each of `resamples` draws of sum(counts) rows with replacement, the sums of the rows' features.

    counts: (P,) rows of each kind; features: sparse (P, F), what one row of a kind adds to each sum.
    Returns (S, F) float64, whole numbers where the features are. The same seed gives the same draws.
    """
    rng = np.random.default_rng(seed)
    total = int(counts.sum())
    shares = counts / total
    columns = features.T.tocsr()
    at_once = max(1, _CELLS_AT_ONCE // len(counts))
    pieces = []
    for start in range(0, resamples, at_once):
        drawn = rng.multinomial(total, shares, size=min(at_once, resamples - start))  # (s, P)
        pieces.append((columns @ drawn.T.astype(np.float64)).T)  # (s, F)
    return np.concatenate(pieces)


def percentile(values: NDArray[np.float64], confidence: float) -> Interval:
    """The percentile interval of the resampled values (S,)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high), confidence)


def accuracy_interval(right: int, n: int, resampled: NDArray[np.float64], confidence: float) -> Interval:
    """The interval of `right` answers among `n`: bootstrap, or the exact bound where all or none are."""
    tail = (1.0 - confidence) / 2.0
    if right == n:
        return Interval(float(tail ** (1.0 / n)), 1.0, confidence, "binomial")
    if right == 0:
        return Interval(0.0, float(1.0 - tail ** (1.0 / n)), confidence, "binomial")
    return percentile(resampled, confidence)


def paired_difference(
    ours_right: NDArray[np.bool_],
    theirs_right: NDArray[np.bool_],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two accuracies measured on the same N rows, resampled in pairs.

    ours_right, theirs_right: (N,) bool. Pairing takes out what both find easy or hard, so that the interval
    is narrower than the two single intervals suggest.
    """
    steps = ours_right.astype(np.int64) - theirs_right.astype(np.int64)  # (N,) -1, 0, 1
    counts = np.bincount(steps + 1, minlength=3)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(steps), counts / len(steps), size=bootstrap)  # (S, 3)
    interval = percentile((drawn[:, 2] - drawn[:, 0]) / len(steps), confidence)
    return Difference(float(steps.mean()), interval)
