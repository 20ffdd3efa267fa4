"""Label names <-> ids, in an order that is the same on every machine, and the labels of every row.

A label is known by its name (a string); `LabelSet.value` gives it back as the user wrote it. This module
knows nothing of splits, and of tables only that a column comes in lists of cells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import counted
from veneer.errors import DataError, nearest

__all__ = [
    "MISSING",
    "LabelCounts",
    "LabelSet",
    "cell_labels",
    "count_labels",
    "encode_labels",
    "encode_multi_hot",
]

MISSING = -1
LIKELY_MISSING = frozenset({"nan", "null", "n/a", "#n/a", "na", "none"})


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task, in the order of their ids.

    names   what the labels are called; the id of a label is its place here
    kind    "string", "int" or "bool": what the user's labels were. Whole numbers written as 1.0 are "int".
    """

    names: tuple[str, ...]
    kind: str = "string"

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {_key(name, self.kind): place for place, name in enumerate(self.names)}

    def find(self, cell: str) -> int | None:
        """The id of a label as it stands in a file, or None where it is not one of these."""
        return self._ids.get(_key(cell.strip(), self.kind))

    def id(self, name: str) -> int:
        """The id of a label; raises `DataError` with the nearest names for one that is not known."""
        found = self.find(name)
        if found is None:
            mend = nearest(name, self.names) or f"Labels: {', '.join(self.names[:20])}."
            raise DataError(f"There is no label {name!r}. {mend}")
        return found

    def value(self, number: int) -> str | int | bool:
        """The label with this id, in the user's own type."""
        name = self.names[number]
        if self.kind == "int":
            return int(name)
        return name.lower() == "true" if self.kind == "bool" else name

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; `from_dict` reads it."""
        return {"names": list(self.names), "kind": self.kind}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(tuple(stored["names"]), stored["kind"])


def _key(name: str, kind: str) -> str:
    """What two spellings of one label have in common."""
    if kind == "bool":
        return name.lower()
    if kind == "int":
        try:
            number = float(name)
        except ValueError:
            return name
        return str(int(number)) if number.is_integer() else name
    return name


@dataclass(frozen=True)
class LabelCounts:
    """The distinct labels of a column, how often each stands there, and how many cells hold none."""

    counts: Mapping[str, int]
    missing: int

    def label_set(self, where: str) -> LabelSet:
        """The labels in order: numbers by size, false before true, all else by code point.

        Raises `DataError` where there are fewer than two.
        """
        kind = _kind(self.counts)
        spelling: dict[str, str] = {}
        for name in self.counts:
            key = _key(name, kind)
            spelling.setdefault(key, key if kind == "int" else name)
        if len(spelling) < 2:
            only = f"only one label, {next(iter(spelling.values()))!r}" if spelling else "no labels at all"
            raise DataError(
                f"{where} holds {only}; at least two different labels are needed to learn to tell them apart."
            )
        keys = sorted(spelling, key=int) if kind == "int" else sorted(spelling)
        return LabelSet(tuple(spelling[key] for key in keys), kind)

    def warnings(self) -> list[str]:
        """What looks like a mistake: spellings that differ only by case, words that mean "missing"."""
        found: list[str] = []
        if _kind(self.counts) != "string":
            return found
        by_case: dict[str, list[str]] = {}
        for name in self.counts:
            by_case.setdefault(name.casefold(), []).append(name)
        for names in by_case.values():
            if len(names) > 1:
                listed = " and ".join(
                    f"{name!r} ({counted(self.counts[name], 'row')})" for name in sorted(names)
                )
                found.append(
                    f"The labels {listed} differ only by case and are kept apart; are they the same?"
                )
        for name in sorted(self.counts):
            if name.lower() in LIKELY_MISSING:
                rows = counted(self.counts[name], "row")
                found.append(f"{rows} with the label {name!r}, kept as a label; is it a missing value?")
        return found


def _kind(names: Iterable[str]) -> str:
    names = set(names)
    if names and {name.lower() for name in names} <= {"true", "false"}:
        return "bool"
    return "int" if names and all(_is_whole(name) for name in names) else "string"


def _is_whole(name: str) -> bool:
    try:
        number = float(name)
    except ValueError:
        return False
    # "007" and numbers that a float does not hold exactly stay what they are: names
    return (
        number.is_integer()
        and abs(number) < 2**53
        and name.lstrip("+-") in _plain_spellings(int(abs(number)))
    )


def _plain_spellings(number: int) -> set[str]:
    return {f"{number}", f"{number}.", f"{number}.0"}


def cell_labels(cell: str | None, kind: str, multi: bool, separator: str | None) -> tuple[str, ...] | None:
    """The labels in one cell: one, or several where `multi`; None for a missing cell, () for an empty list.

    `kind` is the column's (see `Stream`): cells of kind "list" are JSON.
    """
    if cell is None or not cell.strip():
        return None
    if not multi:
        return (cell.strip(),)
    if kind == "list":
        values = json.loads(cell)
        names = [value.strip() if isinstance(value, str) else json.dumps(value) for value in values]
    else:
        names = [part.strip() for part in cell.split(separator)] if separator else [cell.strip()]
    return tuple(dict.fromkeys(name for name in names if name))


def count_labels(
    cells: Iterable[Sequence[str | None]], kind: str, multi: bool, separator: str | None
) -> LabelCounts:
    """Go through a label column once. `cells` are pieces of the column."""
    raw: Counter[str | None] = Counter()
    for piece in cells:
        raw.update(piece)
    counts: Counter[str] = Counter()
    missing = 0
    for cell, n in raw.items():
        names = cell_labels(cell, kind, multi, separator)
        if names is None:
            missing += n
        else:
            counts.update(dict.fromkeys(names, n))
    return LabelCounts(counts, missing)


def _unseen(where: str, unseen: Counter[str], labels: LabelSet) -> DataError:
    listed = ", ".join(f"{name!r} ({counted(n, 'row')})" for name, n in unseen.most_common(8))
    more = f" and {len(unseen) - 8:,} more" if len(unseen) > 8 else ""
    return DataError(
        f"{where} holds {counted(len(unseen), 'label')} that training does not know: {listed}{more}. "
        f"Known labels: {', '.join(labels.names[:20])}. Rename or remove those rows, or train with such rows."
    )


def encode_labels(cells: Iterable[Sequence[str | None]], labels: LabelSet, where: str) -> NDArray[np.int64]:
    """The id of each row's label, (n,) int64, `MISSING` for none; `DataError` names labels that are not known."""
    known: dict[str | None, int] = {None: MISSING}
    unseen: Counter[str] = Counter()
    pieces: list[NDArray[np.int64]] = []
    for piece in cells:
        for cell in piece:
            if cell is None or cell in known:
                continue
            found = labels.find(cell) if cell.strip() else MISSING
            if found is None:
                unseen[cell.strip()] += 1
            else:
                known[cell] = found
        pieces.append(np.fromiter((known.get(cell, MISSING) for cell in piece), np.int64, len(piece)))
    if unseen:
        raise _unseen(where, unseen, labels)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def encode_multi_hot(
    cells: Iterable[Sequence[str | None]], labels: LabelSet, where: str, kind: str, separator: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Multi-hot rows (n, labels) uint8, and which rows have no label cell (n,); errors as `encode_labels`."""
    rows: list[NDArray[np.uint8]] = []
    missing: list[bool] = []
    unseen: Counter[str] = Counter()
    for piece in cells:
        block = np.zeros((len(piece), len(labels)), np.uint8)
        for number, names in enumerate(_several(piece, kind, separator)):
            missing.append(names is None)
            for name in names or ():
                found = labels.find(name)
                if found is None:
                    unseen[name] += 1
                else:
                    block[number, found] = 1
        rows.append(block)
    if unseen:
        raise _unseen(where, unseen, labels)
    return (np.concatenate(rows) if rows else np.zeros((0, len(labels)), np.uint8)), np.array(
        missing, np.bool_
    )


def _several(
    piece: Sequence[str | None], kind: str, separator: str | None
) -> Iterator[tuple[str, ...] | None]:
    return (cell_labels(cell, kind, True, separator) for cell in piece)
