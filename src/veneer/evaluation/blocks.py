"""The pieces that a page of the report is built from, and how each becomes HTML.

Every text is escaped here, in one place: a block holds plain text and never markup. A picture is written into
the page itself. This module must not know what the pieces are about.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

__all__ = [
    "Block",
    "Cell",
    "Columns",
    "Folded",
    "Paragraph",
    "Picture",
    "Preformatted",
    "Section",
    "Spans",
    "Table",
    "render",
    "render_section",
]


@dataclass(frozen=True)
class Cell:
    """A table cell with more than text: `bar` (0 to 1) drawn behind it, `band` (low, high) marked on the bar."""

    text: str
    bar: float | None = None
    band: tuple[float, float] | None = None
    strong: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Columns with a heading each, rows of texts or cells; `numeric` columns are set to the right.

    `texts` columns hold long texts of people: they keep their line breaks and may be wide. A table of more
    than three columns with such a text becomes a list on a phone, each value behind its column's name.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    numeric: tuple[int, ...] = ()
    texts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Paragraph:
    """Running text; `kind` is "" or "note" (small) or "warning"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Preformatted:
    """Text in a fixed-width font with its line breaks: code, a command, a generated sample."""

    text: str


@dataclass(frozen=True)
class Spans:
    """Running text in marked pieces, (text, kind): "" plain, "read" (the loss reads it), "special", "cut"."""

    pieces: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """PNG bytes, the file name beside the report ("loss.png"), what it shows in words, and a caption."""

    png: bytes
    file: str
    alt: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where the page is wide enough."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Folded:
    """Blocks behind a heading that opens on a click, without any script."""

    heading: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Table | Paragraph | Preformatted | Spans | Picture | Columns | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it. `place` is "results" (after the numbers) or "end" (after the data)."""

    title: str
    blocks: tuple[Block, ...]
    place: str = "results"


def render_section(section: Section) -> str:
    """The section as HTML, its title as a heading of the second order."""
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{render_all(section.blocks)}\n</section>"


def render_all(blocks: Sequence[Block]) -> str:
    """Blocks one after the other."""
    return "\n".join(render(block) for block in blocks)


def render(block: Block) -> str:
    """One block as HTML, all texts escaped."""
    match block:
        case Table():
            return _table(block)
        case Paragraph():
            return (
                f'<p class="{escape(block.kind)}">{escape(block.text)}</p>' if block.kind else _plain(block)
            )
        case Preformatted():
            return f"<pre>{escape(block.text)}</pre>"
        case Spans():
            return f'<p class="spans">{"".join(_span(*piece) for piece in block.pieces)}</p>'
        case Picture():
            return _picture(block)
        case Columns():
            return f'<div class="columns">\n{render_all(block.blocks)}\n</div>'
        case Folded():
            inner = render_all(block.blocks)
            return f"<details>\n<summary>{escape(block.heading)}</summary>\n{inner}\n</details>"


def pictures_in(blocks: Sequence[Block]) -> list[Picture]:
    """Every picture among the blocks, those inside other blocks included."""
    found: list[Picture] = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Columns | Folded):
            found += pictures_in(block.blocks)
    return found


def _plain(block: Paragraph) -> str:
    return f"<p>{escape(block.text)}</p>"


def _span(text: str, kind: str) -> str:
    return f'<span class="{escape(kind)}">{escape(text)}</span>' if kind else escape(text)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    kind = ' class="wide"' if picture.wide else ""
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
    return f"<figure{kind}>{image}{caption}</figure>"


def _table(table: Table) -> str:
    kinds = [
        "number" if i in table.numeric else "text" if i in table.texts else ""
        for i in range(len(table.columns))
    ]
    classes = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for name, kind in zip(table.columns, classes, strict=True)
    )
    stacked = bool(table.texts) and len(table.columns) > 3
    marks = [
        f'{kind} data-name="{escape(name)}"' if stacked else kind
        for name, kind in zip(table.columns, classes, strict=True)
    ]
    body = "\n".join(
        "<tr>" + "".join(_cell(cell, mark) for cell, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in table.rows
    )
    parts = ["<thead><tr>" + head + "</tr></thead>"] if any(table.columns) else []
    parts.append(f"<tbody>\n{body}\n</tbody>")
    opening = '<table class="stacked">' if stacked else "<table>"
    return f'<div class="scroll">{opening}' + "\n".join(parts) + "</table></div>"


def _cell(cell: str | Cell, mark: str) -> str:
    if isinstance(cell, str):
        return f"<td{mark}>{escape(cell)}</td>"
    text = f"<strong>{escape(cell.text)}</strong>" if cell.strong else escape(cell.text)
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    return f"<td{mark}>{text}{note}{_bar(cell)}</td>"


def _bar(cell: Cell) -> str:
    if cell.bar is None:
        return ""
    kind = "bar strong" if cell.strong else "bar"
    band = ""
    if cell.band is not None:
        low, high = cell.band
        band = f'<b style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></b>'
    return f'<span class="{kind}"><i style="width:{100 * cell.bar:.1f}%"></i>{band}</span>'
