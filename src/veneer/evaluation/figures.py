"""One clean style for every picture, and the way from a figure to PNG bytes.

Figures are made with matplotlib's objects, never through pyplot: no global state, no window, safe in threads.
The colours are those of Okabe and Ito (2008), which colour-blind people can tell apart. Pictures are made to
be read at a width of 80 mm. This module must not know what is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "INK", "ORANGE", "figure", "png", "shown_label", "style", "with_style"]

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A929C", "#30363D"
WIDTH_INCHES = 4.6
_DPI = 180

style: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # shipped with matplotlib
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def with_style() -> Iterator[None]:
    """Draw in the house style inside the block; matplotlib's settings are as before after it."""
    import matplotlib as mpl

    with mpl.rc_context(style):
        yield


def figure(*, height: float = 3.0, width: float = WIDTH_INCHES, rows: Any = None) -> tuple[Figure, Any]:
    """A new figure (inches) and its axes; rows: relative heights of stacked axes, then a list of axes is returned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches; long labels reach the edge otherwise
    drawn = Figure(figsize=(width, height), dpi=_DPI, layout=layout)
    FigureCanvasAgg(drawn)
    if rows is None:
        return drawn, drawn.add_subplot()
    return drawn, list(drawn.subplots(len(rows), 1, sharex=True, gridspec_kw={"height_ratios": rows}))


def png(drawn: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no date, no version inside)."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def shown_label(label: str, index: int, *, longest: int = 20) -> str:
    """A label as a picture can show it: one line, at most `longest` characters, only signs that the font has.

    Where nothing is left (emoji only, or a script the font lacks), its number: "#3" for index 2.
    """
    known = _characters_of_the_font()
    kept = "".join(sign if ord(sign) in known else " " for sign in " ".join(label.split()))
    kept = " ".join(kept.split())
    if not any(sign.isalnum() for sign in kept):
        return kept if kept == label and kept else f"#{index + 1}"
    return kept if len(kept) <= longest else kept[: longest - 1].rstrip() + "…"


def direct_legend(axes: Axes, **options: Any) -> None:
    """A legend where the axes have more than one line with a name."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(handles, labels, **options)


@lru_cache(maxsize=1)
def _characters_of_the_font() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())
