"""Calibration: whether a probability of 0.9 means right nine times in ten.

Guo, C. et al., On Calibration of Modern Neural Networks (2017), section 2: expected calibration error over
bins of equal width. This module knows probabilities and right or wrong, nothing of labels or texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibration", "CalibrationBin", "calibration_of"]


@dataclass(frozen=True)
class CalibrationBin:
    """The rows with a confidence in (lower, upper]: how many, mean confidence, share that came true.

    An empty bin has count 0, and None for both means.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error (0 to 1, less is better) and the bins that it was computed from."""

    ece: float
    bins: tuple[CalibrationBin, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the error and the bins."""
        return {"ece": self.ece, "bins": [vars(piece) for piece in self.bins]}


def calibration_of(
    confidences: NDArray[np.float64], came_true: NDArray[np.bool_], *, bins: int = 15
) -> Calibration:
    """Bin the confidences and compare each bin's mean with the share that came true.

    confidences: (N,) in [0, 1]; came_true: (N,) bool. Bins are of equal width, open below and closed above;
    the first one holds 0 as well.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)  # (N,)
    counts = np.bincount(index, minlength=bins)
    confidence_sums = np.bincount(index, weights=confidences, minlength=bins)
    true_sums = np.bincount(index, weights=came_true.astype(np.float64), minlength=bins)
    ece = float(np.abs(confidence_sums - true_sums).sum() / len(confidences))
    table = tuple(
        CalibrationBin(
            lower=float(edges[b]),
            upper=float(edges[b + 1]),
            count=int(counts[b]),
            confidence=float(confidence_sums[b] / counts[b]) if counts[b] else None,
            accuracy=float(true_sums[b] / counts[b]) if counts[b] else None,
        )
        for b in range(bins)
    )
    return Calibration(ece, table)
