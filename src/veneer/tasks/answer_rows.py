"""Where the questions of the task "answers" come from: its settings, and its rows out of what a person named.

This file knows the data room; it knows no token and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pydantic

from veneer.data.choices import Choice, Notes
from veneer.data.examples import prepare_examples
from veneer.data.prepared import PreparedRows
from veneer.data.question_columns import find_question_columns, looks_like_questions
from veneer.data.questions import Questions, read_questions
from veneer.data.sources import Source
from veneer.strict import StrictModel
from veneer.tasks.kind import Labelled

__all__ = ["AnswerOptions", "claims", "labelled_questions", "prepare"]


class AnswerOptions(StrictModel):
    """Settings of the task.

    doc_stride           tokens that neighbouring windows of a long context share; at most half of a window is used
    max_answer_length    tokens of the longest answer that is given
    n_best               spans that share an answer's score
    answer_search        characters around answer_start in which an answer's text is looked for where it does not stand
                         there; 0: such a row is an error
    """

    place: ClassVar[str | None] = "options."

    doc_stride: int = pydantic.Field(default=128, ge=0)
    max_answer_length: int = pydantic.Field(default=30, ge=1)
    n_best: int = pydantic.Field(default=20, ge=1, le=1000)
    answer_search: int = pydantic.Field(default=0, ge=0)


def claims(source: Source, decoder: bool | None) -> str | None:  # noqa: ARG001
    """Why the source looks like questions about contexts, or None."""
    if not looks_like_questions(source.columns):
        return None
    return "columns context, question and answers"


def _reading(source: Source, given: Mapping[str, str], search: int, notes: Notes) -> Questions:
    table = source.loaded.table
    columns, choice = find_question_columns(table, given)
    notes.choices.append(choice)
    return read_questions(
        table,
        columns,
        search=search,
        on_missing_label=source.config.on_missing_label,
        on_empty_text=source.config.on_empty_text,
        notes=notes,
    )


def prepare(source: Source, options: AnswerOptions) -> PreparedRows[Questions]:
    """Read, check and split; all questions about one context on one side.

    Raises:
        DataError: a row that is not right, or too few contexts to split.
    """
    given = dict(source.config.columns)

    def read(part: Source, notes: Notes) -> Questions:
        return _reading(part, given, options.answer_search, notes)

    def facts(rows: Questions) -> dict[str, Any]:
        own = {
            "columns": given,
            "question_column": rows.columns.question,
            "context_column": rows.columns.context,
        }
        return own | {"answer_search": options.answer_search}

    notes = Notes()
    found = prepare_examples(
        source, read, notes=notes, facts=facts, count=_counts, noun="question", alike="whose context is"
    )
    contexts = sum(len(np.unique(split.prints, axis=0)) for split in found.splits if len(split))
    reason = "questions about one context stay on one side of the split"
    return replace(found, choices=(*found.choices, Choice("contexts", f"{contexts:,}", reason)))


def _counts(split: Questions) -> dict[str, int]:
    none = split.impossible
    return {"with an answer": len(split) - none, "without": none} if none else {}


def labelled_questions(task: Any, data: Mapping[str, Any], source: Source) -> Labelled:  # noqa: ARG001
    """Questions to measure on, read as training read them."""
    notes = Notes()
    given = {**data.get("columns", {}), **source.config.columns}
    known = {role: name for role, name in given.items() if name in source.columns}
    known |= source.config.columns
    rows = _reading(source, known, int(data.get("answer_search", 0)), notes)
    return Labelled(rows, tuple(notes.choices), tuple(notes.warnings))
