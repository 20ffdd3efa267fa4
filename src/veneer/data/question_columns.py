"""Which columns of a table hold contexts, questions and answers: by their usual names, or as they are named.

This file knows names, and reads no cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veneer.data.choices import Choice
from veneer.data.tables import Table
from veneer.errors import DataError, nearest
from veneer.naming import setting

__all__ = ["ROLES", "QuestionColumns", "find_question_columns", "looks_like_questions"]

ROLES: dict[str, tuple[str, ...]] = {
    "context": ("context", "passage", "paragraph"),
    "question": ("question",),
    "answers": ("answers", "answer", "answer_text"),
    "answer_start": ("answer_start",),
    "is_impossible": ("is_impossible",),
    "id": ("id", "qid"),
}
"""What columns are read as, and their usual names."""


@dataclass(frozen=True)
class QuestionColumns:
    """Which columns are read.

    answers      JSON as `veneer.data.squad.CELL_FORMS` has it; with `start`, the answer's bare text; None: not read
    start        the character at which the answer begins
    impossible   true where the context holds no answer (SQuAD 2)
    """

    context: str
    question: str
    answers: str | None = None
    start: str | None = None
    impossible: str | None = None
    id: str | None = None


def looks_like_questions(columns: Sequence[str]) -> bool:
    """Whether a table with these columns holds contexts, questions and answers."""
    names = {name.strip().lower() for name in columns}
    return all(not names.isdisjoint(ROLES[role]) for role in ("context", "question", "answers"))


def find_question_columns(
    table: Table, given: Mapping[str, str] | None = None, *, need_answers: bool = True
) -> tuple[QuestionColumns, Choice]:
    """The columns that are given by their roles (see `ROLES`), checked, and the others by their usual names.

    Raises `DataError` for a role that is not known, and where a column is missing, naming the flag that says which it
    is.
    """
    given = given or {}
    for role in given:
        if role not in ROLES:
            mend = nearest(role, ROLES) or f"Roles of this task: {', '.join(ROLES)}."
            raise DataError(
                f"{setting('data.columns', {role: given[role]})}: no column is read as {role!r}. {mend}"
            )
    found = {role: _named(table, role, given.get(role)) for role in ROLES}
    needed = ("context", "question", "answers") if need_answers else ("context", "question")
    missing = [role for role in needed if found[role] is None]
    if missing:
        known = "; ".join(f"{role}: {', '.join(ROLES[role])}" for role in missing)
        raise DataError(
            f"{table.path} has no column that is the {' or the '.join(missing)} by its name ({known}); its columns: "
            f"{', '.join(table.columns)}. Say which with {setting('data.columns', {missing[0]: 'NAME'})}."
        )
    if found["answers"] is None or (found["answers"] == "answers" and "answer_start" not in given):
        found["answer_start"] = None
    columns = QuestionColumns(
        found["context"] or "",
        found["question"] or "",
        found["answers"],
        found["answer_start"],
        found["is_impossible"] if found["answers"] else None,
        found["id"],
    )
    shown = ("context", "question", "answers", "answer_start")
    read = [f"{role} {found[role]!r}" for role in shown if found[role]]
    return columns, Choice("columns", ", ".join(read), "named" if given else "by their names")


def _named(table: Table, role: str, given: str | None) -> str | None:
    if given is not None and given not in table.columns:
        mend = nearest(given, table.columns) or f"Columns: {', '.join(table.columns)}."
        raise DataError(
            f"{table.path} has no column {given!r} ({setting('data.columns', {role: given})}). {mend}"
        )
    if given is not None:
        return given
    by_name = {name.strip().lower(): name for name in reversed(table.columns)}
    return next((by_name[name] for name in ROLES[role] if name in by_name), None)
