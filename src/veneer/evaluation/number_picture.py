"""Given numbers against answered ones, a point a row. It knows numbers, and not what they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.figures import BLUE, GREY, figure, png, with_style

__all__ = ["given_and_answered"]

_MOST = 5_000  # points; more of them only make the picture black


def given_and_answered(given: NDArray[np.float64], answers: NDArray[np.float64]) -> bytes:
    """PNG of N points, with the line on which both are equal."""
    if len(given) > _MOST:
        rows = np.unique(np.linspace(0, len(given) - 1, _MOST).astype(np.int64))
        given, answers = given[rows], answers[rows]
    ends = [float(min(given.min(), answers.min())), float(max(given.max(), answers.max()))]
    with with_style():
        drawn, axes = figure(height=3.4)
        axes.plot(ends, ends, color=GREY, linewidth=1.0, linestyle="--")
        size = 14 if len(given) < 500 else 5
        axes.scatter(given, answers, s=size, color=BLUE, alpha=0.45, linewidths=0)
        axes.set_xlabel("given")
        axes.set_ylabel("answered")
        return png(drawn)
