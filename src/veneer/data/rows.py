"""The rows of one table with their labels or numbers, and a `Split`: some of those rows, in an order.

It knows tables and label ids, and not how rows came to be in which split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice, Notes
from veneer.data.faults import refuse_rows
from veneer.data.hashing import UInts, fingerprints
from veneer.data.infer import find_label_column, find_text_column
from veneer.data.labels import MISSING, LabelSet, encode_labels, encode_multi_hot
from veneer.data.numbers import encode_numbers
from veneer.data.pairs import find_pair
from veneer.data.tables import Table
from veneer.errors import DataError
from veneer.naming import settable, setting

__all__ = ["Columns", "LabelForm", "LabelledRows", "Split", "choose_columns", "label_rows"]

Labels = NDArray[np.int64] | NDArray[np.uint8] | NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read."""

    text: str
    label: str
    pair: str | None = None


@dataclass(frozen=True)
class LabelForm:
    """How labels stand in a cell: one, or several with `separator` between them or as a list (None); or a number."""

    multi: bool = False
    separator: str | None = None
    number: bool = False


@dataclass(frozen=True)
class Split:
    """Labelled texts, read from their table when they are asked for.

    name     "train", "validation" or "test"
    rows     (n,) int64: where each stands in its table, counted from 0 without the header
    labels   (n,) int64 ids; for several labels per text (n, labels) uint8, 1 where it applies; (n,) float64 numbers
    """

    name: str
    table: Table
    text_column: str
    rows: NDArray[np.int64]
    labels: Labels
    pair_column: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        """The text at a place, or the texts of a slice."""
        if isinstance(place, slice):
            return self._cells(self.text_column, self.rows[place])
        return self._cells(self.text_column, self.rows[[place]])[0]

    def texts(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The texts from `start` to before `stop` (None: to the end)."""
        return self[start:stop]

    def pairs(self, start: int = 0, stop: int | None = None) -> list[str] | None:
        """The second texts, or None where there is no such column."""
        if self.pair_column is None:
            return None
        return self._cells(self.pair_column, self.rows[start:stop])

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Labels]]:
        """Texts and labels in pieces of at most `size`, in order; no more than a piece is in memory."""
        for start in range(0, len(self), size):
            yield self[start : start + size], self.labels[start : start + size]

    def select(self, places: NDArray[np.int64], name: str | None = None) -> Split:
        """Some of the texts, by their places in this split."""
        return replace(self, name=name or self.name, rows=self.rows[places], labels=self.labels[places])

    def row(self, place: int) -> dict[str, str | None]:
        """All columns of the row at a place, as they stand in the file."""
        return self.table.row(int(self.rows[place]))

    def _cells(self, column: str, rows: NDArray[np.int64]) -> list[str]:
        return [cell or "" for cell in self.table.take(column, rows)]


@dataclass
class LabelledRows:
    """A table with the labels of its rows, and which rows are used.

    prints   (n, 2) uint64: fingerprints of the texts
    keep     (n,) bool: False for rows left out
    """

    table: Table
    columns: Columns
    labels: Labels
    prints: UInts
    keep: NDArray[np.bool_]

    @property
    def kept(self) -> NDArray[np.int64]:
        """Row numbers that are used, ascending."""
        return np.flatnonzero(self.keep).astype(np.int64)

    def split(self, name: str, rows: NDArray[np.int64]) -> Split:
        """These rows as a split."""
        return Split(name, self.table, self.columns.text, rows, self.labels[rows], self.columns.pair)


def choose_columns(
    table: Table, text: str | None, label: str | None, pair: str | None = None
) -> tuple[Columns, list[Choice]]:
    """The columns that are given, checked, and the others inferred with their reasons."""
    if len(table.columns) == 1:
        delimiter = setting("data.delimiter", "CHAR")
        check = f"Check the delimiter ({delimiter}), or give" if settable("data.delimiter") else "Give"
        raise DataError(
            f"{table.path} was read as a single column ({table.columns[0]}); expected a text and a label in "
            f"each row. {check} a table with both."
        )
    found = find_pair(table, taken=(label,)) if text is None and pair is None else None
    if found is not None:
        text, pair, pair_choice = found
        label_column, label_choice = find_label_column(table, label, taken=(text, pair))
        return Columns(text, label_column, pair), [pair_choice, *([label_choice] if label_choice else [])]
    label_column, label_choice = find_label_column(table, label, taken=(text, pair))
    text_column, text_choice = find_text_column(table, text, taken=(label_column, pair))
    if pair is not None:
        find_text_column(table, pair)
    choices = [choice for choice in (text_choice, label_choice) if choice is not None]
    return Columns(text_column, label_column, pair), choices


def label_rows(
    table: Table,
    columns: Columns,
    labels: LabelSet,
    form: LabelForm,
    *,
    on_missing_label: str,
    on_empty_text: str,
    notes: Notes,
) -> LabelledRows:
    """Read labels and fingerprints of a table; leave out, or refuse, rows without a text or a label.

    Counted in `notes`: "rows", "empty_texts", "missing_labels".
    """
    where, kind = str(table.path), table.kinds.get(columns.label, "text")
    encoded: Labels
    if form.number:
        encoded = encode_numbers(table.cells(columns.label), f"{where}, column {columns.label!r}")
        missing = np.isnan(encoded)
    elif form.multi:
        encoded, missing = encode_multi_hot(table.cells(columns.label), labels, where, kind, form.separator)
    else:
        encoded = encode_labels(table.cells(columns.label), labels, where)
        missing = encoded == MISSING
    empty = fingerprints(table.cells(columns.text))
    blank = (empty == fingerprints([[""]])[0]).all(axis=1)
    prints = empty
    if columns.pair is not None:
        prints = _pair_prints(table, columns.text, columns.pair)
        blank |= (fingerprints(table.cells(columns.pair)) == fingerprints([[""]])[0]).all(axis=1)
    missing &= ~blank
    read = columns.text if columns.pair is None else f"{columns.text}, {columns.pair}"
    for column, what, rows, policy, option in (
        (read, "text", blank, on_empty_text, "data.on_empty_text"),
        (columns.label, "label", missing, on_missing_label, "data.on_missing_label"),
    ):
        if policy == "error":
            places = np.flatnonzero(rows) + 1
            refuse_rows(where, places.tolist(), f"a {what} in column {column!r}", option)
    for name, n in (("rows", len(table)), ("empty_texts", blank.sum()), ("missing_labels", missing.sum())):
        notes.add(name, n)
    return LabelledRows(table, columns, encoded, prints, ~(blank | missing))


def _pair_prints(table: Table, text: str, pair: str) -> UInts:
    both = zip(table.cells(text), table.cells(pair), strict=True)
    return fingerprints(
        [f"{(a or '').strip()}\x1f{(b or '').strip()}" for a, b in zip(*p, strict=True)] for p in both
    )
