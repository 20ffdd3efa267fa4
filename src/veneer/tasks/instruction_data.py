"""What instructions and plain text are learnt from: which tables are theirs, how they are read, what can be said.

This file knows files and columns; it knows no token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pydantic

from veneer.data.choices import Notes
from veneer.data.conversation_columns import (
    ConversationColumns,
    choose_conversation_columns,
    conversation_form,
    refuse_unread,
)
from veneer.data.conversations import Conversations, read_conversations
from veneer.data.documents import Documents, read_documents
from veneer.data.examples import prepare_examples
from veneer.data.prepared import PreparedRows
from veneer.data.prompts import PromptFile, read_prompts
from veneer.data.sources import Source
from veneer.data.tables import Table, TableOptions
from veneer.errors import DataError
from veneer.naming import setting
from veneer.strict import StrictModel
from veneer.tasks.base import Input
from veneer.tasks.kind import Labelled

__all__ = ["InstructionOptions", "claims", "inputs_from", "labelled", "prepare"]

_TEXT_FILES = (".txt", ".text", ".md")


class InstructionOptions(StrictModel):
    """What a person may say about instructions and plain text.

    template        how an example is written down: "auto" (the base's own chat template, else Alpaca's layout), "base",
                    "alpaca", "none" (prompt and answer as they stand), or a file with a template in Jinja
    loss            "answer": the loss reads the answers and their ends; "all": the prompts as well
    cut             where an example that is too long loses tokens: "left" (the beginning of the prompt) or "right"
    documents       what separates the documents of a .txt file: "blank-lines", "lines", "file" (nothing); "auto": blank
                    lines where there are any, else every line
    samples         prompts of the validation part that are answered at each evaluation, for the report
    answer_tokens   tokens that an answer has at most, in samples and predictions
    """

    place: ClassVar[str | None] = "options."

    template: str = pydantic.Field(default="auto", min_length=1)
    loss: Literal["answer", "all"] = "answer"
    cut: Literal["left", "right"] = "left"
    documents: Literal["auto", "blank-lines", "lines", "file"] = "auto"
    samples: int = pydantic.Field(default=3, ge=0, le=50)
    answer_tokens: int = pydantic.Field(default=128, ge=1)


def claims(source: Source, decoder: bool | None) -> str | None:
    """Why a source looks like instructions or plain text; None: it does not."""
    if source.suffix in _TEXT_FILES:
        return f"a file of text ({source.suffix})"
    form = conversation_form(source.columns, source.kinds)
    if form is not None:
        columns, _ = choose_conversation_columns("", source.columns, source.kinds, {})
        *others, last = (columns.names[role] for role in columns.in_order)
        return f"columns {', '.join(others)} and {last}" if others else f"column {last}, a list of messages"
    roles = set(source.config.columns)
    if roles & {"instruction", "prompt", "messages"}:
        role = sorted(roles & {"instruction", "prompt", "messages"})[0]
        return setting("data.columns", {role: source.config.columns[role]})
    if decoder and len(source.columns) == 1:
        return "one column of text, and a base that writes"
    return None


def prepare(source: Source, options: Any) -> PreparedRows[Conversations]:
    """Read, check and split.

    Raises:
        DataError, ConfigError: as the readers say.
    """
    given: InstructionOptions = options
    notes = Notes()
    known: list[ConversationColumns] = []

    def read(part: Source, notes: Notes) -> Conversations:
        rows = _read(part, part.config.columns, given.documents, notes, known[0] if known else None)
        known.append(rows.columns)
        return rows

    def facts(rows: Conversations) -> Mapping[str, Any]:
        return {
            "form": rows.columns.form,
            "columns": dict(rows.columns.names),
            "documents": given.documents,
        }

    return prepare_examples(source, read, notes=notes, facts=facts)


def labelled(task: Any, data: Mapping[str, Any], source: Source) -> Labelled:
    """Rows to measure on: columns of the names that training read, where the file has them, else inferred.

    Raises:
        DataError: the file has other columns, or another form of examples.
    """
    notes = Notes()
    columns = source.config.columns or {
        role: name for role, name in dict(data.get("columns", {})).items() if name in source.columns
    }
    documents = cast(Documents, data.get("documents", "auto"))
    rows = _read(source, columns, documents, notes, None)
    if (rows.columns.form == "text") != (task.data == "text"):
        raise DataError(
            f"{source.config.source} holds {'texts' if rows.columns.form == 'text' else 'questions and answers'}; the "
            f"adapter learnt {'texts as they stand' if task.data == 'text' else 'to answer'}. Name the columns to read "
            f"with {setting('data.columns', {'ROLE': 'NAME'})}, or give another file."
        )
    return Labelled(rows, (*source.choices, *notes.choices), (*source.warnings, *notes.warnings))


class PromptStream(Iterator[tuple[dict[str, Any], Input]]):
    """(row, prompt) for each row of a file of prompts; "" where a row asks nothing."""

    def __init__(self, file: PromptFile) -> None:
        self.columns, self.kinds, self.choices = file.columns, file.kinds, file.choices
        self._rows = iter(file)

    def __next__(self) -> tuple[dict[str, Any], Input]:
        row, turns = next(self._rows)
        if not turns:
            return row, ""
        if len(turns) == 1 and not turns[0].input:
            return row, turns[0].content
        return row, {"messages": json.dumps([vars(turn) for turn in turns], ensure_ascii=False)}


def inputs_from(path: Path, columns: Mapping[str, str], options: TableOptions | None = None) -> PromptStream:
    """The rows of a file with the prompt in each; a file made for training serves as well, its answers left out."""
    return PromptStream(read_prompts(path, columns, options))


def _read(
    source: Source,
    columns: Mapping[str, str],
    documents: Documents,
    notes: Notes,
    like: ConversationColumns | None,
) -> Conversations:
    table = _table(source, documents, notes)
    where, config = str(table.path), source.config
    given = dict(columns)
    if config.text_column is not None:
        given.setdefault("text", config.text_column)
    if like is not None:  # a further file, read as the first one where it has the same columns
        given = {role: name for role, name in like.names.items() if name in table.columns} or given
    chosen, choices = choose_conversation_columns(where, table.columns, table.kinds, given)
    refuse_unread(config.columns, chosen.in_order)
    if like is None:
        notes.choices += choices
    return read_conversations(
        table,
        chosen,
        on_missing_label=config.on_missing_label,
        on_empty_text=config.on_empty_text,
        notes=notes,
    )


def _table(source: Source, documents: Documents, notes: Notes) -> Table:
    if source.suffix not in _TEXT_FILES:
        return source.loaded.table
    table = read_documents(source.path, documents, source.config.encoding)
    notes.choices += table.choices
    return table
