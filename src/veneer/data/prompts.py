"""A file of prompts, row by row: what is asked in each, read from the columns that training reads too.

A file made for training serves as well: its answers are left out. This file knows rows and turns; no token, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.data.choices import Choice
from veneer.data.conversation_columns import COLUMN_NAMES, ROLES, refuse_unread
from veneer.data.conversations import Turn, messages_of
from veneer.data.tables import TableOptions, as_lines, open_stream
from veneer.errors import ConfigError, DataError, nearest
from veneer.naming import setting

__all__ = ["PromptFile", "read_prompts"]

_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # what is asked, and what may stand beside it
    ("messages", ("system",)),
    ("instruction", ("input", "system")),
    ("prompt", ("system",)),
    ("text", ("system",)),
)


@dataclass(frozen=True)
class PromptFile:
    """Prompts that can be read again and again, a piece in memory at a time.

    Attributes:
        path: the file.
        columns: all of its columns, in order.
        kinds: column -> what its cells are (see `Stream`).
        roles: role -> column, of those that are read.
        choices: what was inferred.
        options: how it is written; None: inferred.
    """

    path: Path
    columns: tuple[str, ...]
    kinds: Mapping[str, str]
    roles: Mapping[str, str]
    choices: tuple[Choice, ...]
    options: TableOptions | None = None

    def __iter__(self) -> Iterator[tuple[dict[str, Any], tuple[Turn, ...]]]:
        """(row, turns) in order; no turns where there is no prompt.

        Raises:
            DataError: a row that is no prompt, by its number from 1.
        """
        number = 0
        for batch in open_stream(self.path, as_lines(self.path, self.options)).batches:
            for row in batch.to_pylist():
                number += 1
                try:
                    yield row, _turns({role: row[name] or "" for role, name in self.roles.items()})
                except ValueError as error:
                    raise DataError(f"{self.path}, row {number:,}: {error}. Mend or remove it.") from error


def read_prompts(
    path: str | Path, given: Mapping[str, str] | None = None, options: TableOptions | None = None
) -> PromptFile:
    """A file of prompts: csv, tsv, json, jsonl, parquet, or txt with a prompt a line.

    Args:
        path: the file.
        given: role -> column (prompt; instruction, input; messages; text; system), where names don't say.
        options: how the file is written; None: inferred.

    Raises:
        ConfigError: a role that does not exist.
        DataError: the file can't be read, has no row, no column of that name, or none that looks like prompts.
    """
    path = Path(path)
    stream = open_stream(path, as_lines(path, options))
    first = next((batch for batch in stream.batches if batch.num_rows), None)
    if first is None:
        raise DataError(f"{path} holds no rows; a prompt in each row was expected.")
    roles, choices = _roles(path, stream.columns, given or {})
    return PromptFile(path, stream.columns, stream.kinds, roles, (*stream.choices, *choices), options)


def _roles(
    path: Path, columns: tuple[str, ...], given: Mapping[str, str]
) -> tuple[dict[str, str], list[Choice]]:
    for role, name in given.items():
        if role not in ROLES:
            raise ConfigError(
                f"{setting('data.columns', {role: name})}: {role!r} is no role; there are {', '.join(ROLES)}. "
                f"{nearest(role, ROLES)}"
            )
        if name not in columns:
            raise DataError(
                f"{path} has no column {name!r} (asked for as {role}); it has {', '.join(columns)}. "
                f"{nearest(name, columns)}".rstrip()
            )
    plain = {column.strip().lower(): column for column in reversed(columns)}
    named = {
        role: next((plain[name] for name in COLUMN_NAMES[role] if name in plain), None) for role in ROLES
    } | dict(given)
    asked = [form for form in _FORMS if form[0] in given] or [form for form in _FORMS if named[form[0]]]
    if asked:
        role, beside = asked[0]
        roles = {name: column for name in (role, *beside) if (column := named[name]) is not None}
    elif len(columns) == 1:
        roles = {"prompt": columns[0]}
    else:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; expected prompt, instruction (and input), messages or text. "
            f"Say which it is, such as {setting('data.columns', {'prompt': 'NAME'})}."
        )
    answers = ("output", "completion")  # of a file that was made for training: left out anyway
    refuse_unread({role: name for role, name in given.items() if role not in answers}, tuple(roles))
    reason = "its name" if asked else "the only one"
    return roles, [Choice(f"column of {r}", c, reason) for r, c in roles.items() if r not in given]


def _turns(cells: Mapping[str, str]) -> tuple[Turn, ...]:
    """What is asked; () where nothing is. Raises `ValueError`, which says why."""
    if "messages" in cells:
        turns = messages_of(cells["messages"])
        if turns and turns[-1].role == "assistant":  # made for training
            turns = turns[:-1]
        if turns and turns[-1].role != "user":
            raise ValueError(
                f"its last message is of the {turns[-1].role}; expected the user's, or an answer to it"
            )
    else:
        name = next(role for role in ("instruction", "prompt", "text") if role in cells)
        turns = [Turn("user", cells[name], cells.get("input", ""))]
    if not turns or not (turns[-1].content.strip() or turns[-1].input.strip()):
        return ()
    system = cells.get("system", "").strip()
    return (*([Turn("system", system)] if system and turns[0].role != "system" else ()), *turns)
