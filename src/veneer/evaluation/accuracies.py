"""The picture of accuracies on several sets, epoch by epoch, as the spam recipe draws them.

Epochs below, examples seen above. This module knows points, not the run that made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from veneer.evaluation.curves import HistoryPoint, epochs_and_examples
from veneer.evaluation.figures import BLUE, GREEN, ORANGE, direct_legend, figure, png, with_style

__all__ = ["accuracy_picture"]

_COLOURS = (BLUE, ORANGE, GREEN)


def accuracy_picture(
    points: Sequence[HistoryPoint], accuracies: Mapping[str, Sequence[float]], *, note: str = ""
) -> bytes:
    """PNG of up to three accuracies.

    points       where each was measured (the losses are not read)
    accuracies   name of a set -> a share in [0, 1] at each point
    note         a line above the picture
    """
    with with_style():
        drawn, axes = figure()
        epochs = [point.epoch for point in points]
        for colour, (name, shares) in zip(_COLOURS, accuracies.items(), strict=False):
            percent = [100 * share for share in shares]
            axes.plot(epochs, percent, color=colour, marker="o", markersize=4.5, label=name)
        axes.set_ylabel("accuracy (%)")
        axes.set_ylim(top=min(104, axes.get_ylim()[1] + 4))
        epochs_and_examples(axes, points)
        direct_legend(axes, loc="lower right")
        if note:
            drawn.suptitle(note, fontsize=8.5)
        return png(drawn)
