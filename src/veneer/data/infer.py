"""Which column is the text and which the label, and what task the labels make: each with its reason.

It looks at names and at a sample of the cells. Where two columns are as likely it asks, and never guesses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veneer.data.choices import Choice, counted
from veneer.data.tables import Table
from veneer.errors import DataError, nearest
from veneer.naming import settable, setting

__all__ = ["ColumnFacts", "column_facts", "find_label_column", "find_text_column", "infer_task"]

TEXT_NAMES = (
    "text", "texts", "sentence", "message", "messages", "content", "body", "review", "comment", "tweet",
    "utterance", "sms", "query", "document", "sentence1", "text_a", "premise",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "categories", "target", "sentiment", "intent", "topic", "topics",
    "tag", "tags", "emotion", "emotions", "is_spam", "spam", "rating", "stars", "score", "similarity",
)  # fmt: skip
SAMPLE_ROWS = 10_000


_MOST_NUMBERS = 0.9  # of the cells
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


@dataclass(frozen=True)
class ColumnFacts:
    """What a sample of a column looks like. Shares are of the cells that are not empty, in [0, 1]."""

    name: str
    kind: str
    cells: int
    distinct: int
    mean_characters: float
    mean_words: float
    numeric: float
    whole: float

    @property
    def may_be_text(self) -> bool:
        """Words, mostly different from row to row."""
        if self.kind in ("list", "object", "bool") or not self.cells or self.numeric > 0.5:
            return False
        return self.mean_words >= 2 or (self.mean_characters >= 3 and self.distinct > 0.5 * self.cells)

    @property
    def may_be_label(self) -> bool:
        """Few different values, each of them short; or numbers."""
        if self.kind == "list":
            return True
        if self.kind == "object" or not self.cells or self.mean_characters > 64:
            return False
        if self.may_be_number:
            return True
        return self.distinct <= (max(2, self.cells // 2) if self.cells < 40 else self.cells // 4)

    @property
    def may_be_number(self) -> bool:
        """Numbers that are not all whole; a few cells may be none, which are named when they are read."""
        return self.numeric >= _MOST_NUMBERS and self.whole < self.numeric

    def describe(self) -> str:
        """The facts that speak for or against it, for a message."""
        words = f"{self.mean_words:.0f} words a cell, " if self.mean_words >= 2 else ""
        distinct = counted(self.distinct, "distinct value")
        return f"{self.name!r} ({words}{distinct} in {counted(self.cells, 'cell')})"


def column_facts(table: Table, column: str) -> ColumnFacts:
    """Facts from a sample of up to `SAMPLE_ROWS` rows, taken evenly from the whole table."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), SAMPLE_ROWS)).astype(np.int64))
    cells = [cell for cell in table.take(column, rows) if cell is not None and cell.strip()]
    numbers = [number for number in map(_number, cells) if number is not None]
    n = max(1, len(cells))
    return ColumnFacts(
        name=column,
        kind=table.kinds.get(column, "text"),
        cells=len(cells),
        distinct=len(set(cells)),
        mean_characters=sum(map(len, cells)) / n,
        mean_words=sum(len(cell.split()) for cell in cells) / n,
        numeric=len(numbers) / n,
        whole=sum(number == int(number) for number in numbers) / n,
    )


def _number(cell: str) -> float | None:
    """A cell as a number; with a decimal comma it is meant as one, and refused by its row when it is read as one."""
    try:
        number = float(cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def find_text_column(
    table: Table, given: str | None, taken: Sequence[str | None] = ()
) -> tuple[str, Choice | None]:
    """The column to read; `taken` are columns with another use. Raises `DataError` where it is unclear."""
    if given is not None:
        return _checked(table, given, "text"), None
    facts = _facts(table, taken)
    likely = [one for one in facts if one.may_be_text]
    several_words = [one for one in likely if one.mean_words >= 2]
    found = _by_name(likely, TEXT_NAMES)
    if found is None:
        found = _single(several_words, "the only column of several words")
    return _decided(table, "text", facts, likely, found)


def find_label_column(
    table: Table, given: str | None, taken: Sequence[str | None] = ()
) -> tuple[str, Choice | None]:
    """The column to predict; `taken` are columns with another use. Raises `DataError` where it is unclear."""
    if given is not None:
        return _checked(table, given, "label"), None
    facts = _facts(table, taken)
    named = _by_name([one for one in facts if one.may_be_label], LABEL_NAMES)
    likely = [one for one in facts if one.may_be_label and one.distinct > 1]  # a constant can't be learnt
    return _decided(table, "label", facts, likely, named)


def _checked(table: Table, given: str, role: str) -> str:
    if given not in table.columns:
        mend = nearest(given, table.columns) or f"Columns: {', '.join(table.columns)}."
        raise DataError(f"{table.path} has no column {given!r} ({role} column). {mend}")
    return given


def _facts(table: Table, taken: Sequence[str | None]) -> list[ColumnFacts]:
    return [column_facts(table, column) for column in table.columns if column not in taken]


Found = tuple[ColumnFacts, str]
"""A column and the reason for it."""


def _single(candidates: Sequence[ColumnFacts], reason: str) -> Found | None:
    return (candidates[0], reason) if len(candidates) == 1 else None


def _by_name(candidates: Sequence[ColumnFacts], names: Sequence[str]) -> Found | None:
    """The one whose name is the usual one, else a usual one, else has a usual one as a word of it."""
    whole = [one for one in candidates if one.name.strip().lower() in names]
    usual = [one for one in whole if one.name.strip().lower() == names[0]]
    if usual or whole:
        return _single(usual or whole, "its name")
    within = [one for one in candidates if not set(re.findall(r"[a-z]+", one.name.lower())).isdisjoint(names)]
    return _single(within, "a word of its name")


def _decided(
    table: Table, role: str, facts: Sequence[ColumnFacts], likely: Sequence[ColumnFacts], found: Found | None
) -> tuple[str, Choice]:
    """The column that was found, or the only likely one, as a choice; else an error that names the flag."""
    found = found or _single(likely, "the only column that could be")
    if found is None:
        raise DataError(_unclear(table, role, facts, likely) + _not_read(table, facts))
    column, reason = found
    others = ", ".join(repr(one.name) for one in likely if one is not column)
    also = f"; also possible: {others}" if others else ""
    return column.name, Choice(f"{role} column", column.name, f"{reason}, and {_why(column, role)}{also}")


def _why(facts: ColumnFacts, role: str) -> str:
    if role == "label":
        return f"{counted(facts.distinct, 'distinct value')} in {counted(facts.cells, 'row')}"
    return (
        f"{facts.mean_characters:.0f} characters a row, {facts.distinct / max(1, facts.cells):.0%} distinct"
    )


def _unclear(table: Table, role: str, facts: Sequence[ColumnFacts], likely: Sequence[ColumnFacts]) -> str:
    flag = setting(f"data.{role}_column")
    if likely:
        listed = ", ".join(one.describe() for one in likely)
        both = ""
        if role == "text" and len(likely) == 2:
            pair = zip(("text_column", "text_pair_column"), likely, strict=True)
            both = f" To read both together: {' '.join(setting(f'data.{key}', repr(one.name)) for key, one in pair)}."
        return f"{table.path}: which column is the {role}? It could be {listed}. Say which with {flag}.{both}"
    wanted = "words, mostly different in each row" if role == "text" else "few different values, or numbers"
    roles = setting("data.columns", {"instruction": "NAME", "output": "NAME"})
    other = (
        f", or, for rows of another task, {setting('task')} and its columns, such as {roles}"
        if settable("task")
        else ""
    )
    listed = ", ".join(one.describe() for one in facts) or "none left"
    return f"{table.path}: no column looks like a {role} ({wanted}). Columns: {listed}. Say which with {flag}{other}."


def _not_read(table: Table, facts: Sequence[ColumnFacts]) -> str:
    """What a message that lists columns has to add: those with another use, and objects."""
    objects = [one.name for one in facts if one.kind == "object"]
    taken = [name for name in table.columns if name not in {one.name for one in facts}]
    said = f" Taken for something else: {', '.join(map(repr, taken))}." if taken else ""
    if objects:
        names = ", ".join(map(repr, objects))
        said += f" Fields inside of objects ({names}) are not read: write them as columns of their own."
    return said


def infer_task(
    facts: ColumnFacts, cells: Sequence[str | None], multi_label: bool | None, separator: str | None
) -> tuple[Choice, str | None]:
    """The task that the label column makes, and the separator of several labels in a cell, if there is one.

    The choice's value is "classification", "multi-label" or "regression". `cells` is a sample of the column.
    """
    several = "multi-label"
    found = separator
    if found is None and multi_label is not False and facts.kind != "list":
        found = _joined([cell.strip() for cell in cells if cell is not None and cell.strip()])
    if multi_label:
        return Choice("task", several, f"{setting('data.multi_label')} is set"), found
    if multi_label is None and separator is not None:
        return Choice("task", several, f"labels are separated by {separator!r}"), found
    if multi_label is None and facts.kind == "list":
        return Choice("task", several, f"{facts.name!r} holds lists"), None
    if multi_label is None and found is not None:
        reason = f"cells of {facts.name!r} hold several of the same few labels, separated by {found!r}"
        return Choice("task", several, reason), found
    if facts.may_be_number:
        return Choice("task", "regression", f"{facts.name!r} holds numbers that are not whole"), None
    if facts.numeric == 1 and facts.distinct > max(20, facts.cells // 20):
        return Choice(
            "task", "regression", f"{facts.name!r} holds {facts.distinct:,} different numbers"
        ), None
    reason = f"each row of {facts.name!r} holds one of a few labels"
    if facts.numeric == 1 and facts.distinct > 2:
        reason += f"; {setting('task', 'regression')} takes them for numbers"
    return Choice("task", "classification", reason), None


def _joined(cells: Sequence[str]) -> str | None:
    """The separator with which cells join labels that also occur alone, if that is how the column is written."""
    for separator, enough in (("|", 0.5), (";", 0.5), (",", 0.9)):  # a comma may be part of a name
        joined = [cell for cell in cells if separator in cell]
        if not joined or len(joined) < 0.02 * len(cells):
            continue
        parts = Counter(part.strip() for cell in joined for part in cell.split(separator))
        alone = {cell for cell in cells if separator not in cell}
        combinations, known = set(joined), sum(n for part, n in parts.items() if part in alone)
        if (
            "" not in parts
            and known >= enough * sum(parts.values())
            and len(parts) < len(combinations) + len(alone)
        ):
            return separator
    return None
