"""The curves of a run: the loss of training and validation, and the metric that chose the adapter.

Both have two axes, epochs below and examples seen above, as the spam recipe draws them. A value that is
missing or not finite is left out. This module knows the history of a run as plain points, not the trainer
that made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from veneer.evaluation.figures import BLUE, GREY, INK, ORANGE, direct_legend, figure, png, with_style

__all__ = ["HistoryPoint", "epochs_and_examples", "loss_curve", "metric_curve"]

_SMOOTH_ABOVE = 40  # training points; more of them are drawn thin, with a running mean over them


@dataclass(frozen=True)
class HistoryPoint:
    """What was known after `step` optimiser steps, `epoch` (a fraction) and `examples` seen; None: not measured."""

    step: int
    epoch: float
    examples: int
    train_loss: float | None = None
    val_loss: float | None = None
    val_metric: float | None = None
    lr: float | None = None
    kept: bool = False
    """Whether the adapter of this step is the one that was kept."""

    @classmethod
    def read(cls, rows: Sequence[Mapping[str, Any]]) -> tuple[HistoryPoint, ...]:
        """Points from the lines of a metrics file; keys that are not a field of HistoryPoint are left aside."""
        names = {piece.name for piece in fields(cls)}
        return tuple(cls(**{key: value for key, value in row.items() if key in names}) for row in rows)


def loss_curve(history: Sequence[HistoryPoint], *, note: str = "") -> bytes | None:
    """PNG of both losses over epochs and examples seen; None where the history has no loss.

    note: a line above the picture.
    """
    train = _points(history, lambda point: point.train_loss)
    validation = _points(history, lambda point: point.val_loss)
    if len(train) + len(validation) == 0:
        return None
    with with_style():
        drawn, axes = figure()
        if len(train) > _SMOOTH_ABOVE:
            axes.plot(train[:, 0], train[:, 1], color=BLUE, alpha=0.22, linewidth=0.8)
            axes.plot(train[:, 0], _running_mean(train[:, 1]), color=BLUE, label="training")
        elif len(train):
            axes.plot(
                train[:, 0], train[:, 1], color=BLUE, marker=_marker(train), markersize=3.5, label="training"
            )
        if len(validation):
            axes.plot(*validation.T, color=ORANGE, marker="o", markersize=4.5, label="validation")
        axes.set_ylabel("loss")
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        epochs_and_examples(axes, history)
        direct_legend(axes, loc="upper right" if len(history) > 4 else "lower left")
        if note:
            drawn.suptitle(note, fontsize=8.5)
        return png(drawn)


def metric_curve(
    history: Sequence[HistoryPoint],
    *,
    name: str = "Accuracy",
    percent: bool = True,
    higher_is_better: bool = True,
    reference: tuple[str, float] | None = None,
) -> bytes | None:
    """PNG of the validation metric, the kept point (or else the best) marked; None where the history has no metric.

    reference: a name and a value (a baseline on the same rows) drawn as a dashed line.
    """
    points = _points(history, lambda point: point.val_metric)
    if len(points) == 0:
        return None
    scale = 100 if percent else 1
    with with_style():
        drawn, axes = figure()
        values = points[:, 1] * scale
        axes.plot(points[:, 0], values, color=BLUE, marker="o", markersize=4.5, label="adapter, validation")
        kept = [i for i, (epoch, _) in enumerate(points) if any(p.kept and p.epoch == epoch for p in history)]
        chosen = kept[-1] if kept else int(values.argmax() if higher_is_better else values.argmin())
        axes.plot(points[chosen, 0], values[chosen], "o", color="none", markeredgecolor=BLUE, markersize=10)
        axes.annotate(
            f"{values[chosen]:.1f} %" if percent else f"{values[chosen]:.3f}",
            (points[chosen, 0], values[chosen]),
            xytext=(0, 8 if higher_is_better else -17),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontweight="bold",
        )
        if reference is not None and math.isfinite(reference[1]):
            axes.axhline(reference[1] * scale, color=GREY, linestyle=(0, (4, 3)), label=reference[0])
        axes.set_ylabel(f"{name.lower()} (%)" if percent else name.lower())
        axes.margins(x=0.08, y=0.25)
        if percent:
            axes.set_ylim(max(axes.get_ylim()[0], -2), min(axes.get_ylim()[1], 104))
        epochs_and_examples(axes, history)
        direct_legend(axes, loc="lower right" if higher_is_better else "upper right")
        return png(drawn)


def _points(history: Sequence[HistoryPoint], value_of: Callable[[HistoryPoint], float | None]) -> Any:
    """(M, 2) float64: epoch and value of the points that have a finite value."""
    pairs = [(point.epoch, value_of(point)) for point in history]
    kept = [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value)]
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def _running_mean(values: Any) -> Any:
    """The mean over a window of a twentieth of the points around each of them, shorter at the ends."""
    half = max(2, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _marker(points: Any) -> str | None:
    return "o" if len(points) < 15 else None


def epochs_and_examples(axes: Any, history: Sequence[HistoryPoint]) -> None:
    """Epochs on the lower axis, the examples seen on an upper one of the same scale."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    last = max(history, key=lambda point: point.epoch)
    axes.set_xlabel("epochs")
    if last.epoch <= 0:
        return
    axes.set_xlim(-0.01 * last.epoch, last.epoch * 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=last.epoch >= 3))
    above = axes.twiny()
    above.grid(visible=False)
    above.spines["top"].set_visible(True)
    above.set_xlim(*(bound * last.examples / last.epoch for bound in axes.get_xlim()))
    above.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    above.xaxis.set_major_formatter(FuncFormatter(_thousands))
    above.set_xlabel("examples seen")


def _thousands(value: float, _place: int) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g} M"
    return f"{value:,.0f}" if value >= 0 else ""
