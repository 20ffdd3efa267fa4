"""Pictures of how a classifier answers: the confusion matrix, the largest confusions, the calibration
diagram.

This module knows counts and label names; not where the pictures go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.calibration import Calibration
from veneer.evaluation.figures import BLUE, GREY, INK, ORANGE, figure, png, shown_label, with_style

__all__ = ["calibration_diagram", "confusion_picture", "top_confusions_picture"]

MATRIX_LABELS = 30  # more labels than these can't be read in a matrix of 80 mm


def confusion_picture(confusion: NDArray[np.int64], labels: Sequence[str]) -> bytes:
    """PNG of the (K, K) counts, given by predicted, coloured by the share of each given label's rows.

    Beyond 30 labels the largest confusions are drawn instead.
    """
    if len(labels) > MATRIX_LABELS:
        return top_confusions_picture(confusion, labels)
    size = len(labels)
    supports = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, supports, out=np.zeros(confusion.shape), where=supports > 0)
    side = float(np.clip(1.9 + 0.36 * size, 3.0, 7.4))
    with with_style():
        drawn, axes = figure(height=side * 0.92, width=max(side, 3.4))
        axes.imshow(shares, cmap=_white_to_blue(), vmin=0, vmax=1, aspect="equal")
        axes.grid(visible=False)
        names = [shown_label(label, i, longest=18) for i, label in enumerate(labels)]
        letters = 8.5 if size <= 15 else 6.5
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        upright = size <= 3 and max(map(len, names)) <= 12
        axes.set_xticks(range(size), names, fontsize=letters, parse_math=False, **({} if upright else turned))
        axes.set_yticks(range(size), names, fontsize=letters, parse_math=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("given")
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(visible=True, which="minor", color="#E3E6EA", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        _write_counts(axes, confusion, shares, letters)
        return png(drawn)


def top_confusions_picture(confusion: NDArray[np.int64], labels: Sequence[str], k: int = 15) -> bytes:
    """PNG of the `k` largest off-diagonal counts as bars, "given → predicted"."""
    cells = confusion.copy()
    np.fill_diagonal(cells, 0)
    order = [place for place in np.argsort(-cells, axis=None, kind="stable")[:k] if cells.flat[place] > 0]
    pairs = [divmod(int(place), len(labels)) for place in order]
    names = [f"{shown_label(labels[i], i)} → {shown_label(labels[j], j)}" for i, j in pairs]
    counts = [int(cells[i, j]) for i, j in pairs]
    with with_style():
        drawn, axes = figure(height=max(1.6, 0.7 + 0.26 * len(pairs)))
        if not pairs:
            axes.text(0.5, 0.5, "no confusions: every answer is right", ha="center", transform=axes.transAxes)
            axes.set_axis_off()
            return png(drawn)
        bars = axes.barh(range(len(pairs)), counts, color=ORANGE, height=0.66)
        axes.bar_label(bars, padding=3, fontsize=8.5, color=INK)
        axes.set_yticks(range(len(pairs)), names, fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        axes.margins(x=0.12)
        drawn.suptitle("given → predicted, number of texts", fontsize=9.5, fontweight="bold")
        return png(drawn)


def calibration_diagram(calibration: Calibration, *, several_labels: bool = False) -> bytes:
    """PNG: how often an answer of each confidence is right, and below it how many answers have that confidence."""
    filled = [piece for piece in calibration.bins if piece.count]
    middles = [(piece.lower + piece.upper) / 2 for piece in filled]
    width = calibration.bins[0].upper - calibration.bins[0].lower
    with with_style():
        drawn, (upper, lower) = figure(height=3.6, rows=[3.2, 1])
        upper.plot(
            [0, 1], [0, 1], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="as sure as it is right"
        )
        upper.bar(middles, [piece.accuracy for piece in filled], width=width * 0.94, color=BLUE, alpha=0.3)
        means = [piece.confidence for piece in filled]
        upper.plot(
            means, [piece.accuracy for piece in filled], "o", color=BLUE, markersize=4.5, label="observed"
        )
        upper.set_ylabel("share that is yes" if several_labels else "share that is right")
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.22)  # room for the legend above the highest point
        upper.set_yticks(np.linspace(0, 1, 6))
        upper.legend(loc="upper left", ncols=2, columnspacing=1.2, borderaxespad=0.1)
        lower.bar(middles, [piece.count for piece in filled], width=width * 0.94, color=GREY)
        lower.set_yscale("log" if max(piece.count for piece in filled) > 50 else "linear")
        lower.set_ylabel("answers" if several_labels else "texts")
        lower.set_ylim(bottom=0.5)
        lower.set_xlabel("probability of yes" if several_labels else "probability of the answer")
        lower.minorticks_off()
        lower.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
        return png(drawn)


def _write_counts(
    axes: Any, confusion: NDArray[np.int64], shares: NDArray[np.float64], letters: float
) -> None:
    """The count in each cell that holds any; light letters on dark cells."""
    largest = len(f"{confusion.max():,}")
    letters = min(letters + 0.5, 26 / max(largest, 2)) if len(confusion) > 4 else 11
    for i, j in np.argwhere(confusion > 0):
        colour = "white" if shares[i, j] > 0.55 else INK
        axes.text(j, i, f"{confusion[i, j]:,}", ha="center", va="center", color=colour, fontsize=letters)


def _white_to_blue() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("veneer", ["#FFFFFF", "#CFE3F1", "#6FAED6", BLUE, "#004A75"])
