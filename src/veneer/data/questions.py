"""Questions about contexts, each answer checked against its context.

All questions about one context stay on one side of a split: half of an answer is to have seen the paragraph. This file
knows tables and characters, and no token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Notes, counted
from veneer.data.hashing import UInts, fingerprints
from veneer.data.question_columns import QuestionColumns
from veneer.data.squad import GoldAnswer, parse_answers
from veneer.data.tables import Table
from veneer.errors import DataError
from veneer.naming import setting

__all__ = [
    "Question",
    "Questions",
    "read_questions",
]

_MOST_FAULTS = 5


@dataclass(frozen=True)
class Question:
    """One question.

    row       where it stands in its table, from 0
    id        the file's own name for it, or its row's number
    answers   gold answers; () where the context holds none
    """

    row: int
    id: str
    question: str
    context: str
    answers: tuple[GoldAnswer, ...] = ()


@dataclass(frozen=True)
class Questions:
    """Usable questions of a table.

    rows      (N,) int64: where each stands in the table
    answers   N tuples of gold answers
    prints    (N, 2) uint64: fingerprints of the contexts; questions with equal ones belong on one side of a split
    """

    name: str
    table: Table
    columns: QuestionColumns
    rows: NDArray[np.int64]
    answers: Sequence[tuple[GoldAnswer, ...]]
    prints: UInts

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def impossible(self) -> int:
        """How many have no answer in their context."""
        return sum(not gold for gold in self.answers)

    def select(self, places: NDArray[np.int64], name: str | None = None) -> Questions:
        """Some of them, by their places here."""
        chosen = [self.answers[place] for place in places.tolist()]
        return replace(
            self, name=name or self.name, rows=self.rows[places], answers=chosen, prints=self.prints[places]
        )

    def content(self, place: int) -> str:
        """All of a question as one text, for a hash."""
        one = self[place]
        return json.dumps([one.context, one.question, [[gold.text, gold.start] for gold in one.answers]])

    def __getitem__(self, place: int) -> Question:
        return next(self.iterate(np.array([place % len(self)], np.int64)))

    def __iter__(self) -> Iterator[Question]:
        return self.iterate(np.arange(len(self), dtype=np.int64))

    def iterate(self, places: NDArray[np.int64], size: int = 1024) -> Iterator[Question]:
        """Questions by their places, read from the table `size` at a time."""
        names = self.columns
        for begin in range(0, len(places), size):
            piece = places[begin : begin + size]
            rows = self.rows[piece]
            contexts = self.table.take(names.context, rows)
            asked = self.table.take(names.question, rows)
            ids = self.table.take(names.id, rows) if names.id else [None] * len(rows)
            for place, row, one, question, context in zip(
                piece.tolist(), rows.tolist(), ids, asked, contexts, strict=True
            ):
                yield Question(row, one or str(row + 1), question or "", context or "", self.answers[place])


def read_questions(
    table: Table,
    columns: QuestionColumns,
    *,
    name: str = "train",
    search: int = 0,
    on_missing_label: str = "error",
    on_empty_text: str = "drop",
    notes: Notes,
) -> Questions:
    """Every row as a question with checked answers.

    Args:
        name: of the part that they are.
        search: where context[answer_start:] does not begin with the answer's text, look for it up to so many characters
            before and after; what is found is counted as "moved_answers". 0: an answer at another place is an error.
        on_missing_label: "error", or "drop" rows that have no answers and don't say that there is none.
        on_empty_text: "drop" rows without a question or a context, counted; or "error".
        notes: gets "rows", "empty_texts", "missing_labels", "moved_answers", "without_answer", and warnings.

    Raises:
        DataError: answers that are not where they are said to be, or not answers: all counted, the first ones named.
    """
    reader = _Reader(table, columns, search, on_missing_label, on_empty_text)
    cells = [
        columns.context,
        columns.question,
        columns.answers,
        columns.start,
        columns.impossible,
        columns.id,
    ]
    pieces = zip(*(_cells(table, name) for name in cells), strict=True)
    for piece in pieces:
        for row in zip(*piece, strict=True):
            reader.add(*row)
    reader.note(notes)
    rows = np.array(reader.rows, np.int64)
    prints = fingerprints(table.cells(columns.context))[rows]
    return Questions(name, table, columns, rows, reader.answers, prints)


def _cells(table: Table, column: str | None) -> Iterator[list[str | None]]:
    if column is not None:
        yield from table.cells(column)
    else:
        for piece in table.cells(table.columns[0]):
            yield [None] * len(piece)


class _Reader:
    """Rows to questions; faults are collected."""

    def __init__(self, table: Table, columns: QuestionColumns, search: int, missing: str, empty: str) -> None:
        self.table, self.columns, self.search = table, columns, search
        self.policy = {"missing": missing, "empty": empty}
        self.rows: list[int] = []
        self.answers: list[tuple[GoldAnswer, ...]] = []
        self.faults: list[str] = []
        self.seen = self.faulty = self.moved = 0
        self.left_out = {"missing": 0, "empty": 0}

    def add(self, context: str | None, question: str | None, *gold: str | None) -> None:
        """The cells of one row: context, question, answers, start, impossible, id."""
        row, self.seen = self.seen, self.seen + 1
        empty = [
            f"the {name} is empty"
            for name, cell in (("context", context), ("question", question))
            if not (cell or "").strip()
        ]
        if empty:
            self._leave_out("empty", row, gold[3], empty[0])
            return
        try:
            found = self._answers(context or "", *gold[:3])
        except ValueError as fault:
            self._fault(row, gold[3], str(fault))
            return
        if found is None:
            self._leave_out("missing", row, gold[3], _NO_ANSWER)
            return
        self.rows.append(row)
        self.answers.append(found)

    def _answers(
        self, context: str, cell: str | None, start: str | None, impossible: str | None
    ) -> tuple[GoldAnswer, ...] | None:
        if self.columns.answers is None:
            return ()
        found = parse_answers(cell) if self.columns.start is None else _plain(cell, start)
        none_said = _truth(impossible)
        if none_said:
            if found:
                raise ValueError(
                    f"is_impossible is true, and there is an answer ({found[0].text!r}); mend one of the two"
                )
            return ()
        if not found:
            return () if found == () and none_said is None else None
        return tuple(self._checked(context, one) for one in found)

    def _checked(self, context: str, gold: GoldAnswer) -> GoldAnswer:
        if context.startswith(gold.text, gold.start):
            return gold
        places = _occurrences(context, gold.text)
        near = [place for place in places if abs(place - gold.start) <= self.search]
        if near:
            self.moved += 1
            return GoldAnswer(gold.text, min(near, key=lambda place: abs(place - gold.start)))
        there = context[gold.start : gold.start + len(gold.text)]
        known = f"it stands at {places[0]}" if places else "the context does not hold it"
        raise ValueError(f"answer_start {gold.start} points at {there!r}, not at {gold.text!r}; {known}")

    def _leave_out(self, what: str, row: int, name: str | None, why: str) -> None:
        if self.policy[what] == "error":
            self._fault(row, name, why)
        else:
            self.left_out[what] += 1

    def _fault(self, row: int, name: str | None, what: str) -> None:
        self.faulty += 1
        if len(self.faults) < _MOST_FAULTS:
            called = f" (id {name})" if name else ""
            self.faults.append(f"row {row + 1:,}{called}: {what}")

    def note(self, notes: Notes) -> None:
        """Raise all faults, or tell the counts."""
        if self.faulty:
            raise DataError(self._message())
        notes.add("rows", self.seen)
        notes.add("empty_texts", self.left_out["empty"])
        notes.add("missing_labels", self.left_out["missing"])
        notes.add("moved_answers", self.moved)
        notes.add("without_answer", sum(not gold for gold in self.answers))
        if self.moved:
            notes.warnings.append(
                f"{counted(self.moved, 'answer')} of {self.table.path.name} {'does' if self.moved == 1 else 'do'} not "
                f"stand at answer_start; found within {self.search} characters of it."
            )

    def _message(self) -> str:
        more = self.faulty - len(self.faults)
        rest = f"; and {counted(more, 'more row')}" if more else ""
        mend = (
            " answer_start counts characters from 0; if it is only a little off, "
            f"{setting('options.answer_search', 'N')} looks for the text N characters around it."
        )
        off = mend if any("answer_start" in fault for fault in self.faults) else ""
        return f"{self.table.path}: {'; '.join(self.faults)}{rest}. Mend the rows.{off}"


_NO_ANSWER = (
    "it has no answers, and nothing says that the context holds none (is_impossible: true, as SQuAD 2 has it)"
)


def _plain(text: str | None, start: str | None) -> tuple[GoldAnswer, ...] | None:
    """One answer as a bare text with its place in another column."""
    if text is None or not text.strip():
        return None
    try:
        place = int(start or "")
    except ValueError:
        raise ValueError(f"answer_start of {text!r} is {start!r}; expected a number from 0") from None
    if place < 0:
        raise ValueError(f"answer_start of {text!r} is {place}; expected a number from 0")
    return (GoldAnswer(text, place),)


def _truth(cell: str | None) -> bool | None:
    if cell is None or not cell.strip():
        return None
    word = cell.strip().lower()
    if word in ("true", "1", "yes"):
        return True
    if word in ("false", "0", "no"):
        return False
    raise ValueError(f"is_impossible is {cell!r}; expected true or false")


def _occurrences(context: str, text: str) -> list[int]:
    found, place = [], context.find(text)
    while place >= 0:
        found.append(place)
        place = context.find(text, place + 1)
    return found
