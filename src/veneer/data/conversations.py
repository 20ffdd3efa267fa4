"""Rows as conversations: who says what, and which answers are to be learnt; or plain texts.

Every row is checked once when it is read; faults are collected and named by their rows. Rows are read from their table
again when they are asked for, so no more than a piece of them is in memory. This file knows no token and no template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Notes, counted
from veneer.data.conversation_columns import ConversationColumns
from veneer.data.faults import refuse_rows
from veneer.data.hashing import UInts, fingerprints
from veneer.data.tables import Table
from veneer.errors import DataError

__all__ = [
    "Conversation",
    "Conversations",
    "Turn",
    "conversation_of",
    "conversation_or_prompt",
    "messages_of",
    "read_conversations",
]

_MOST_FAULTS = 5
_SPEAKERS = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """What one side says.

    role      "system", "user" or "assistant"
    content   the words
    input     what an Alpaca instruction is about ("" where there is none, and for all other forms)
    """

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True)
class Conversation:
    """Turns, the last of which is an answer; or, with `text`, a text without any turns."""

    turns: tuple[Turn, ...] = ()
    text: str | None = None

    @property
    def answer(self) -> str:
        """The last answer, or the text."""
        return self.text if self.text is not None else self.turns[-1].content

    @property
    def asked(self) -> tuple[Turn, ...]:
        """What stands before the last answer."""
        return self.turns[:-1]


@dataclass(frozen=True)
class Conversations:
    """Usable rows of a table.

    rows      (N,) int64: where each stands in the table, from 0
    prints    (N, 2) uint64: fingerprints of what is asked and answered; equal ones belong on one side of a split
    """

    name: str
    table: Table
    columns: ConversationColumns
    rows: NDArray[np.int64]
    prints: UInts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Conversation:
        return next(self.iterate(np.array([place % len(self)], np.int64)))

    def __iter__(self) -> Iterator[Conversation]:
        return self.iterate(np.arange(len(self), dtype=np.int64))

    def select(self, places: NDArray[np.int64], name: str | None = None) -> Conversations:
        """Some of them, by their places here."""
        return replace(self, name=name or self.name, rows=self.rows[places], prints=self.prints[places])

    def content(self, place: int) -> str:
        """All of an example as one text."""
        return _print_of(self[place])

    def cells(self, place: int) -> dict[str, str]:
        """What stands in the columns of a row, by role; nothing for an empty cell."""
        row = self.rows[[place]]
        found = {role: self.table.take(name, row)[0] for role, name in self.columns.names.items()}
        return {role: cell for role, cell in found.items() if cell}

    def iterate(self, places: NDArray[np.int64], size: int = 1024) -> Iterator[Conversation]:
        """Conversations by their places, read from the table `size` at a time."""
        roles = tuple(self.columns.names)
        for begin in range(0, len(places), size):
            rows = self.rows[places[begin : begin + size]]
            cells = [self.table.take(self.columns.names[role], rows) for role in roles]
            for values in zip(*cells, strict=True):
                yield conversation_of(self.columns.form, dict(zip(roles, values, strict=True)))


class _EmptyError(ValueError):
    """There is nothing to learn from: no text that asks, or no answer (`what`)."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"there is no {what} in it")


def read_conversations(
    table: Table,
    columns: ConversationColumns,
    *,
    name: str = "train",
    on_missing_label: str = "error",
    on_empty_text: str = "drop",
    notes: Notes,
) -> Conversations:
    """Every row of a table, checked.

    Args:
        table, columns: what to read.
        name: of the part that they are.
        on_missing_label: "error", or "drop" rows without an answer, counted.
        on_empty_text: "drop" rows without a question (a text), counted; or "error".
        notes: gets "rows", "empty_texts", "missing_labels".

    Raises:
        DataError: rows that are no conversations, or that have no answer: all counted, the first ones named.
    """
    where, roles = str(table.path), tuple(columns.names)
    faults: list[str] = []
    kept: list[int] = []
    texts: list[str] = []
    empty: dict[str, list[int]] = {"text": [], "answer": []}
    pieces = zip(*(table.cells(columns.names[role]) for role in roles), strict=True)
    row = 0
    for piece in pieces:
        for values in zip(*piece, strict=True):
            row += 1
            try:
                one = conversation_of(columns.form, dict(zip(roles, values, strict=True)))
            except _EmptyError as error:
                empty[error.what].append(row)
            except ValueError as error:
                faults.append(f"row {row:,}: {error}")
            else:
                kept.append(row - 1)
                texts.append(_print_of(one))
    _raise_faults(where, faults)
    if on_empty_text == "error":
        refuse_rows(where, empty["text"], "a text", "data.on_empty_text")
    if on_missing_label == "error":
        refuse_rows(where, empty["answer"], "an answer", "data.on_missing_label")
    for key, n in (
        ("rows", row),
        ("empty_texts", len(empty["text"])),
        ("missing_labels", len(empty["answer"])),
    ):
        notes.add(key, n)
    return Conversations(name, table, columns, np.array(kept, np.int64), fingerprints([texts]))


def conversation_or_prompt(cells: Mapping[str, str]) -> tuple[Conversation, bool]:
    """Texts by their roles, as a conversation, and whether it ends with an answer; else it ends with what is asked.

    >>> conversation_or_prompt({"prompt": "Hello"})
    (Conversation(turns=(Turn(role='user', content='Hello', input=''),), text=None), False)

    Raises:
        ValueError: they are no conversation; the message says why.
    """
    forms = {"text": "text", "messages": "messages", "instruction": "output", "prompt": "completion"}
    asked = next((role for role in forms if role in cells), None)
    if asked is None:
        raise ValueError(
            f"it has {', '.join(cells) or 'nothing'}; expected prompt, instruction (and input), messages or text"
        )
    if asked == "text" or (forms[asked] in cells and asked != "messages"):
        return conversation_of(asked, cells), True
    if asked != "messages":
        turns = _asked_and_answered(asked, dict(cells) | {forms[asked]: "-"})[:-1]
    else:
        turns = messages_of(cells["messages"])
        if turns and turns[-1].role == "assistant":
            return conversation_of("messages", cells), True
    if not any(turn.content.strip() or turn.input.strip() for turn in turns if turn.role == "user"):
        raise _EmptyError("text")
    return Conversation(tuple(turns)), False


def conversation_of(form: str, cells: Mapping[str, str | None]) -> Conversation:
    """The cells of a row, by role, as a conversation.

    Raises:
        ValueError: the cells are none; the message says why, without the row.
    """
    if form == "text":
        text = cells["text"] or ""
        if not text.strip():
            raise _EmptyError("text")
        return Conversation(text=text)
    turns = messages_of(cells["messages"] or "") if form == "messages" else _asked_and_answered(form, cells)
    if not turns or turns[-1].role != "assistant":
        raise _EmptyError("answer" if turns else "text")
    if any(not turn.content.strip() for turn in turns if turn.role == "assistant"):
        raise _EmptyError("answer")
    if not any(turn.content.strip() or turn.input.strip() for turn in turns if turn.role == "user"):
        raise _EmptyError("text")
    return Conversation(tuple(turns))


def _asked_and_answered(form: str, cells: Mapping[str, str | None]) -> list[Turn]:
    asked, answer = ("instruction", "output") if form == "instruction" else ("prompt", "completion")
    question, given = cells[asked] or "", cells[answer] or ""
    system = (cells.get("system") or "").strip()
    turns = [Turn("system", system)] if system else []
    if _is_list(question):
        turns += messages_of(question)
    else:
        turns.append(Turn("user", question, cells.get("input") or ""))
    return turns + (messages_of(given) if _is_list(given) else [Turn("assistant", given)])


def _is_list(cell: str) -> bool:
    """A list of messages in a cell of prompt or completion (a text that only begins so stays a text)."""
    if not cell.startswith("[{"):
        return False
    try:
        found = json.loads(cell)
    except ValueError:
        return False
    return all(isinstance(one, dict) and ("role" in one or "from" in one) for one in found)


def messages_of(cell: str) -> list[Turn]:
    """A cell with a JSON list of messages, checked; [] where it is empty. Raises `ValueError`, which says why."""
    if not cell.strip():
        return []
    try:
        found = json.loads(cell)
    except ValueError:
        raise ValueError(f"messages are no JSON list: {cell[:60]!r}") from None
    if not isinstance(found, list):
        raise ValueError(
            f"messages are {type(found).__name__}, expected a list of objects with role and content"
        )
    turns = [_turn(one, number) for number, one in enumerate(found, start=1)]
    for number, turn in enumerate(turns[1:], start=2):
        if turn.role == "system":
            raise ValueError(f"message {number} is of the system; only the first one can be")
        if turn.role == "assistant" and turns[number - 2].role == "assistant":
            raise ValueError(
                f"messages {number - 1} and {number} are both answers; join them, or put a question between"
            )
    return turns


def _turn(one: Any, number: int) -> Turn:
    if not isinstance(one, dict):
        raise ValueError(
            f"message {number} is {type(one).__name__}, expected an object with role and content"
        )
    said, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
    role = _SPEAKERS.get(str(said).lower())
    if role is None:
        raise ValueError(f"message {number} has the role {said!r}; expected system, user or assistant")
    if isinstance(content, list):
        content = _joined(content, number)
    if not isinstance(content, str):
        raise ValueError(f"message {number} has the content {content!r}; expected a text")
    about = one.get("input", "")
    return Turn(role, content, about if isinstance(about, str) else "")


def _joined(parts: Sequence[Any], number: int) -> str:
    """The text of a content in parts, as chat templates for pictures write it."""
    texts = [
        part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts
    ]
    if any(not isinstance(text, str) for text in texts):
        raise ValueError(f"message {number} holds something else than text, which Veneer does not train on")
    return "".join(str(text) for text in texts)


def _print_of(one: Conversation) -> str:
    """What makes two rows the same example."""
    if one.text is not None:
        return one.text
    return "\x1e".join(f"{t.role}\x1f{t.content.strip()}\x1f{t.input.strip()}" for t in one.turns)


def _raise_faults(where: str, faults: Sequence[str]) -> None:
    if faults:
        more = f" (and {len(faults) - _MOST_FAULTS:,} more)" if len(faults) > _MOST_FAULTS else ""
        listed = "; ".join(faults[:_MOST_FAULTS])
        raise DataError(
            f"{where}: {counted(len(faults), 'row')} can't be read as a conversation, counted from 1: {listed}{more}. "
            "Mend or remove them."
        )
