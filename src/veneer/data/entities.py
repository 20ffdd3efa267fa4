"""Rows of entities: a text with the places of its words, and a BIO tag for each word.

Whatever stands in the file (CoNLL columns, lists of tokens and tags, spans of characters), the tags of a row are one
number a word here; text and words are read from the table when they are asked for. It knows no tokenizer.

Shapes: N rows, W words of a row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice, Notes, counted
from veneer.data.entity_columns import EntityColumns, find_entity_columns
from veneer.data.hashing import UInts, fingerprints
from veneer.data.ragged import Ragged
from veneer.data.spans import SpanError, entities_on_words, parse_spans
from veneer.data.tables import Table
from veneer.data.tags import (
    OUTSIDE,
    Entity,
    bio_labels,
    bio_tags,
    broken,
    entities_of,
    recognise,
    scan_tags,
)
from veneer.data.words import Places, WordRule, join_words, words_of
from veneer.errors import DataError
from veneer.naming import setting

__all__ = ["EntityRows", "Sentence", "read_entities"]

_MOST_FAULTS = 5
_BLOCK = 1024  # rows whose texts are read at once


@dataclass(frozen=True)
class Sentence:
    """One row: its text, where the W words stand in it, and their tags (numbers of the rows' labels)."""

    text: str
    words: Places
    tags: NDArray[np.int64]


@dataclass(frozen=True)
class EntityRows:
    """N rows of one table.

    name      "train", "validation" or "test"
    rows      (N,) int64: where each stands in its table, counted from 0
    columns   what is read of the table
    rule      how running text is cut into words: what the rows' own text was cut by, or comes nearest to it
    names     the BIO labels of these rows' tags, "O" first
    tags      N rows of W numbers of labels
    prints    (N, 2) uint64: fingerprints of the texts
    """

    name: str
    rows: NDArray[np.int64]
    table: Table
    columns: EntityColumns
    rule: WordRule
    names: tuple[str, ...]
    tags: Ragged
    prints: UInts
    _kept: dict[int, list[str | None]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Sentence:
        """One row; reading them in their order is the fast way."""
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        place %= len(self)
        text, words = _words(self._cell(place), self.columns, self.rule)
        return Sentence(text, words, self.tags[place])

    def __iter__(self) -> Iterator[Sentence]:
        """The rows in order."""
        return (self[place] for place in range(len(self)))

    def _cell(self, place: int) -> str | None:
        """The text's cell; its neighbours are kept for the next ones."""
        start = place // _BLOCK * _BLOCK
        if start not in self._kept:
            self._kept.clear()
            self._kept[start] = self.table.take(self.columns.text, self.rows[start : start + _BLOCK])
        return self._kept[start][place - start]

    def select(self, places: NDArray[np.int64], name: str | None = None) -> EntityRows:
        """Some of the rows, by their places."""
        return replace(
            self,
            name=name or self.name,
            rows=self.rows[places],
            tags=self.tags[places],
            prints=self.prints[places],
            _kept={},
        )

    def content(self, place: int) -> str:
        """A row with its tags, as one text."""
        row = self[place]
        return json.dumps([row.text, row.words, [self.names[tag] for tag in row.tags.tolist()]])

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64: the tag of each row's first entity, 0 where it has none; rows that differ in it differ."""
        found = np.zeros(len(self), np.int64)
        marked = np.flatnonzero(self.tags.values)
        row = np.searchsorted(self.tags.offsets, marked, side="right") - 1
        rows, first = np.unique(row, return_index=True)
        found[rows] = self.tags.values[marked[first]]
        return found

    @property
    def types(self) -> tuple[str, ...]:
        """The types of entities, by name."""
        return tuple(label[2:] for label in self.names if label.startswith("B-"))

    def type_counts(self) -> dict[str, int]:
        """How many entities of each type the rows hold."""
        begins = Counter(self.tags.values.tolist())
        return {label[2:]: begins[n] for n, label in enumerate(self.names) if label.startswith("B-")}

    def entities(self) -> list[list[Entity]]:
        """The entities of each row, as words of it."""
        names = np.array(self.names, dtype=object)[self.tags.values]
        bounds = self.tags.offsets
        return [
            entities_of(names[bounds[n] : bounds[n + 1]].tolist(), "BIO") if self.tags[n].any() else []
            for n in range(len(self))
        ]

    def tokens(self, place: int) -> list[str]:
        """The words of a row."""
        row = self[place]
        return [row.text[start:end] for start, end in row.words]


def read_entities(
    table: Table,
    notes: Notes,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    tag_names: Sequence[str] | None = None,
    name: str = "train",
) -> EntityRows:
    """All rows of a table that have a text.

    Args:
        table: of either form.
        notes: gets the choices, warnings, and counts: rows, empty_texts, words, entities, broken_entities,
            cut_words, lost_spans.
        text_column, label_column: where they are not to be inferred.
        tag_names: what tags that are numbers stand for, from 0 on.
        name: of the rows.

    Raises:
        DataError: rows that can't be right, the first few named; no entity at all.
    """
    columns, choices = find_entity_columns(table, text_column, label_column)
    notes.choices += choices
    kept, found, prints = _rows(table, columns, tag_names, notes)
    if not len(kept):
        raise DataError(f"{table.path}: no row holds a text.")
    labels = bio_labels(kind for entities, _ in found for _, _, kind in entities)
    if len(labels) == 1:
        raise DataError(f"{table.path} marks no entity. At least one type is needed to learn.")
    ids = {label: n for n, label in enumerate(labels)}
    tags = Ragged.of([[ids[tag] for tag in bio_tags(n, entities)] for entities, n in found], np.int16)
    notes.add("rows", len(table))
    notes.add("empty_texts", len(table) - len(kept))
    notes.add("words", len(tags.values))
    notes.add("entities", sum(len(entities) for entities, _ in found))
    rule: WordRule = "fine" if columns.form == "spans" else "edges"
    return EntityRows(name, kept, table, columns, rule, labels, tags, prints)


Found = list[tuple[list[Entity], int]]
"""The entities of each row and how many words it has."""


def _rows(
    table: Table, columns: EntityColumns, tag_names: Sequence[str] | None, notes: Notes
) -> tuple[NDArray[np.int64], Found, UInts]:
    """The rows with a text, what each holds, and their fingerprints."""
    faults = _Faults(str(table.path))
    reading = _tagged_rows if columns.form == "tags" else _spanned_rows
    kept, found = reading(table, columns, tag_names, notes, faults)
    faults.raise_if_any()
    prints = np.concatenate([fingerprints([piece]) for piece in _texts(table, columns)])
    rows = np.array(kept, dtype=np.int64)
    return rows, found, prints[rows]


def _tagged_rows(
    table: Table, columns: EntityColumns, tag_names: Sequence[str] | None, notes: Notes, faults: _Faults
) -> tuple[list[int], Found]:
    where = f"{table.path}, column {columns.label!r}"
    kept, rows = [], []
    for number, (tokens, given) in enumerate(_cells(table, columns)):
        words, marks = _list(tokens), _list(given)
        if not words and not marks:
            continue
        if len(words) != len(marks):
            faults.add(number, f"{counted(len(words), 'token')} and {counted(len(marks), 'tag')}")
        elif None in words or None in marks:
            place, what = (words.index(None), "token") if None in words else (marks.index(None), "tag")
            faults.add(number, f"{what} {place + 1} is missing (null)")
        else:
            kept.append(number)
            rows.append(marks)
    faults.raise_if_any()
    tags = _named(rows, tag_names, where)
    scan = scan_tags(tags)
    scheme, choice = recognise(scan, where)
    notes.choices.append(choice)
    if OUTSIDE not in scan.counts:
        notes.warnings.append(
            f"{where}: no word is tagged O, as in tagging parts of speech. Neighbours of one tag are read as one "
            "entity, and the figures are of such runs."
        )
    if n := broken(scan, scheme):
        notes.add("broken_entities", n)
        notes.warnings.append(
            f"{where}: {counted(n, 'entity begins', 'entities begin')} with I- and not with B-. They are read as "
            "entities, as seqeval's default mode reads them."
        )
    return kept, [(entities_of(row, scheme), len(row)) for row in tags]


def _named(rows: list[list[Any]], names: Sequence[str] | None, where: str) -> list[list[str]]:
    """Tags as strings; numbers by their names."""
    numbers = {tag for row in rows for tag in row if not isinstance(tag, str)}
    if not numbers:
        return [[tag.strip() for tag in row] for row in rows]
    if names is None:
        raise DataError(
            f"{where} holds numbers ({', '.join(map(str, sorted(numbers, key=str)[:8]))}), and nothing says what they "
            f"stand for. Give their names in order: {setting('options.tag_names', '[O,B-person,I-person,...]')}."
        )
    wrong = [tag for tag in numbers if not isinstance(tag, int) or not 0 <= tag < len(names)]
    if wrong:
        raise DataError(
            f"{where} holds {wrong[0]!r}; tag_names gives {counted(len(names), 'name')}, from 0 on."
        )
    return [[names[tag] if isinstance(tag, int) else tag for tag in row] for row in rows]


def _spanned_rows(
    table: Table,
    columns: EntityColumns,
    tag_names: Sequence[str] | None,  # noqa: ARG001  (numbers name no spans)
    notes: Notes,
    faults: _Faults,
) -> tuple[list[int], Found]:
    kept: list[int] = []
    found: Found = []
    cut = lost = 0
    for number, (text, cell) in enumerate(_cells(table, columns)):
        try:
            spans = parse_spans(text or "", cell)
        except SpanError as fault:
            faults.add(number, str(fault))
            continue
        words = words_of(text or "", "fine")
        if not words:
            continue
        entities, cuts, losses = entities_on_words(spans, words)
        cut, lost = cut + cuts, lost + losses
        kept.append(number)
        found.append((entities, len(words)))
    notes.choices.append(Choice("tags", "spans", "characters are marked; words are cut at blanks and signs"))
    if cut:
        notes.add("cut_words", cut)
        notes.warnings.append(
            f"{table.path}: {counted(cut, 'span cuts', 'spans cut')} a word and {'is' if cut == 1 else 'are'} read as "
            "the whole word."
        )
    if lost:
        notes.add("lost_spans", lost)
        notes.warnings.append(
            f"{table.path}: {counted(lost, 'span marks', 'spans mark')} no word of its own and is left out: another "
            "span has its word, or it holds no visible character."
        )
    return kept, found


def _cells(table: Table, columns: EntityColumns) -> Iterator[tuple[str | None, str | None]]:
    for texts, labels in zip(table.cells(columns.text), table.cells(columns.label), strict=True):
        yield from zip(texts, labels, strict=True)


def _list(cell: str | None) -> list[Any]:
    found = [] if cell is None else json.loads(cell)
    return found if isinstance(found, list) else [found]


def _words(cell: str | None, columns: EntityColumns, rule: WordRule) -> tuple[str, Places]:
    if columns.form == "tags":
        return join_words([str(token) for token in _list(cell)])
    return cell or "", words_of(cell or "", rule)


def _texts(table: Table, columns: EntityColumns) -> Iterator[list[str]]:
    for piece in table.cells(columns.text):
        if columns.form == "tags":
            yield [" ".join(map(str, _list(cell))) for cell in piece]
        else:
            yield [cell or "" for cell in piece]


class _Faults:
    """Rows that can't be right, gathered so that one error names them."""

    def __init__(self, where: str) -> None:
        self.where, self.more = where, 0
        self.found: list[str] = []

    def add(self, row: int, what: str) -> None:
        """Note what is wrong with a row, counted from 0 here and from 1 in words; of many only the first are kept."""
        if len(self.found) < _MOST_FAULTS:
            self.found.append(f"row {row + 1}: {what}")
        else:
            self.more += 1

    def raise_if_any(self) -> None:
        """Raise `DataError` with the rows that were noted and how many more there were; nothing without any."""
        if self.found:
            more = f"; and {counted(self.more, 'more row')}" if self.more else ""
            raise DataError(f"{self.where}: {'; '.join(self.found)}{more}. Mend those rows (counted from 1).")
