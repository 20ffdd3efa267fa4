"""The picture of a rank approximation: singular values, and the error that a rank leaves.

This module knows numbers and names of layers, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.figures import BLUE, GREEN, GREY, INK, ORANGE, figure, png, with_style

__all__ = ["spectrum_picture"]

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")


def spectrum_picture(
    singular_values: Mapping[str, NDArray[np.float64]],
    ranks: Sequence[int],
    errors: Sequence[float],
    *,
    chosen: int | None = None,
) -> bytes:
    """PNG: above, each layer's singular values, coloured by the kind of layer; below, the error at each rank.

    singular_values   name of a layer -> its values, falling
    ranks, errors     the overall relative error, in [0, 1], that each rank leaves
    chosen            the rank that was taken, marked
    """
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in singular_values))
    highest = max(max((len(values) for values in singular_values.values()), default=1), *ranks)
    with with_style():
        drawn, (upper, lower) = figure(height=4.4, rows=[1.4, 1])
        named: set[str] = set()
        for name, values in singular_values.items():
            kind = name.rpartition(".")[2]
            place = kinds.index(kind)
            colour = _COLOURS[place] if place < len(_COLOURS) else GREY
            label = kind if place < len(_COLOURS) else "others"
            floor = values[0] * 1e-7  # below it there is rounding only
            kept = values[values > floor]
            upper.plot(
                np.arange(1, len(kept) + 1), kept, color=colour, alpha=0.6, linewidth=1,
                label=None if label in named else label,
            )  # fmt: skip
            named.add(label)
        upper.set_yscale("log")
        upper.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
        upper.set_ylabel("singular value")
        upper.legend(loc="lower left", fontsize=7.5, ncols=2)
        lower.plot(ranks, [100 * error for error in errors], color=INK, marker="o", markersize=4)
        lower.set_ylabel("error (%)")
        lower.set_ylim(-4, 108)
        lower.set_xscale("log", base=2)
        lower.set_xlim(0.9, highest * 1.2)
        lower.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
        lower.set_xlabel("r, the rank that is kept")
        if chosen is not None:
            for axes in (upper, lower):
                axes.axvline(chosen, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
            lower.annotate(f"r = {chosen}", (chosen, 96), xytext=(4, -3), textcoords="offset points")
        return png(drawn)
