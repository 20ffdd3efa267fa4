"""CoNLL columns -> batches with a sentence in each row: a word a line, a blank line between sentences.

    Empire     B-location
    State      I-location

A row's cells are JSON lists: "tokens" (the first column), "tags" (the last), and any between them under their names
from a `# global.columns` line, else "column_2", ... Lines of -DOCSTART- and comments are passed over. It knows nothing
of what the tags mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from veneer.data.choices import Choice, counted
from veneer.data.tables import ROWS_PER_BATCH, Stream
from veneer.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["conll_stream", "looks_like_conll"]

_SAMPLE_LINES = 400
_GLOBAL_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.+)")
_MARKED = re.compile(r"[BIESLUM][-_]\S+")
_DOCSTART = "-DOCSTART-"

Sentence = list[list[str]]
"""A list of words, each a list of its columns."""


@dataclass(frozen=True)
class _Layout:
    """How the lines are written: `tab` between the columns (else any blanks), `names` of the columns."""

    tab: bool
    names: tuple[str, ...]

    def columns(self, line: str) -> list[str]:
        """The cells of a line, without the end of the line; an empty line has none, or with tabs one empty cell."""
        return line.split("\t") if self.tab else line.split()


def looks_like_conll(path: Path, encoding: str) -> bool:
    """Whether the top of a text file has words in lines with a tag such as B-x or O at the end, and blank lines."""
    rows: list[list[str]] = []
    blank = False
    for line in islice(_lines(path, encoding), _SAMPLE_LINES):
        if not line.strip():
            blank = True
        elif not line.startswith(("#", _DOCSTART)):
            rows.append(line.split("\t") if "\t" in line else line.split())
    if len(rows) < 2 or len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return False
    tags = {row[-1] for row in rows}
    marked = {tag for tag in tags if _MARKED.fullmatch(tag)}
    return bool(tags) and tags <= marked | {"O"} and (blank or bool(marked))


def conll_stream(path: Path, encoding: str, choices: tuple[Choice, ...] = ()) -> Stream:
    """The sentences of a file. Raises `DataError` for a line with another number of columns than the others."""
    layout = _layout(path, encoding)
    names = layout.names
    reason = (
        f"{'a tab' if layout.tab else 'blanks'} between {len(names)} columns, a blank line between sentences"
    )
    sentences = _sentences(path, encoding, layout)
    first = list(islice(sentences, ROWS_PER_BATCH))
    return Stream(
        path,
        names,
        dict.fromkeys(names, "list"),
        _batches(names, first, sentences),
        (*choices, Choice("format", "conll", reason)),
    )


def _layout(path: Path, encoding: str) -> _Layout:
    named: list[str] = []
    tab, width = False, 0
    for line in islice(_lines(path, encoding), _SAMPLE_LINES):
        if match := _GLOBAL_COLUMNS.fullmatch(line):
            named = match[1].split()
        elif line.strip() and not line.startswith(("# ", _DOCSTART)):
            tab = "\t" in line
            width = len(line.split("\t") if tab else line.split())
            break
    if width == 0:
        raise DataError(f"{path} holds no sentences; lines with a word and its tag were expected.")
    if width < 2:
        raise DataError(
            f"{path} is no file of CoNLL columns: its first line of words has {counted(width, 'column')}; expected a "
            "word and its tag, with a tab or a blank between them."
        )
    if len(named) == width:
        names = [name.lower() for name in named]
        return _Layout(tab, ("tokens", *names[1:-1], "tags"))
    return _Layout(tab, ("tokens", *(f"column_{n}" for n in range(2, width)), "tags"))


def _lines(path: Path, encoding: str) -> Iterator[str]:
    with path.open(encoding=encoding) as file:
        for line in file:
            yield line.rstrip("\n")


def _sentences(path: Path, encoding: str, layout: _Layout) -> Iterator[Sentence]:
    sentence: Sentence = []
    faults: list[str] = []
    for number, line in enumerate(_lines(path, encoding), start=1):
        columns = layout.columns(line)
        if not line.strip():
            if sentence:
                yield sentence
            sentence = []
        elif columns[0] == _DOCSTART or (line.startswith("#") and len(columns) != len(layout.names)):
            continue
        elif len(columns) != len(layout.names) or not columns[-1].strip():
            faults.append(f"line {number} ({line[:40]!r})")
            if len(faults) == 5:
                break
        else:
            sentence.append([*columns[:-1], columns[-1].strip()])
    if faults:
        raise DataError(
            f"{path}: expected {len(layout.names)} columns, the last a tag, in each line; not so in "
            f"{', '.join(faults)}. Mend those lines, or separate sentences by a blank line."
        )
    if sentence:
        yield sentence


def _batches(
    names: tuple[str, ...], first: list[Sentence], rest: Iterator[Sentence]
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    sentences = first
    while sentences:
        arrays = [
            pa.array(
                [json.dumps([word[place] for word in s], ensure_ascii=False) for s in sentences], pa.string()
            )
            for place in range(len(names))
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=list(names))
        sentences = list(islice(rest, ROWS_PER_BATCH))
