"""Which columns hold what a model is asked and what it should answer.

    instruction, input, output      Alpaca's
    prompt, completion              a text and what comes after it; each may be a list of messages
    messages                        a list of {"role", "content"} (or ShareGPT's {"from", "value"})
    text                            text as it stands, without a question

It looks at names and kinds of columns; it reads no cell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from veneer.data.choices import Choice
from veneer.errors import ConfigError, DataError, nearest
from veneer.naming import setting

__all__ = [
    "COLUMN_NAMES",
    "ROLES",
    "ConversationColumns",
    "ConversationForm",
    "choose_conversation_columns",
    "conversation_form",
    "refuse_unread",
]

ConversationForm = Literal["instruction", "prompt", "messages", "text"]

COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction", "instructions"),
    "input": ("input", "inputs", "context"),
    "output": ("output", "outputs", "response", "answer", "completion"),
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "prompts", "question", "query"),
    "completion": ("completion", "completions", "response", "output", "answer"),
    "messages": ("messages", "conversations", "conversation"),
    "text": ("text", "texts", "content", "document", "body"),
}
_FORMS: Mapping[ConversationForm, tuple[tuple[str, ...], tuple[str, ...]]] = {  # needed, and maybe there
    "messages": (("messages",), ()),
    "instruction": (("instruction", "output"), ("input", "system")),
    "prompt": (("prompt", "completion"), ("system",)),
    "text": (("text",), ()),
}
ROLES: tuple[str, ...] = tuple(COLUMN_NAMES)
"""The names before = in `--column ROLE=NAME`."""

_SURE_PROMPTS = ("prompt", "prompts")  # "question" alone may be many things


@dataclass(frozen=True)
class ConversationColumns:
    """A form, and the column of each of its roles, e.g. {"instruction": "task", "output": "answer"}."""

    form: ConversationForm
    names: Mapping[str, str]

    @property
    def in_order(self) -> tuple[str, ...]:
        """The roles as they are spoken: system, instruction, input, output."""
        order = ("system", "instruction", "input", "output", "prompt", "completion", "messages", "text")
        return tuple(role for role in order if role in self.names)


def conversation_form(columns: Sequence[str], kinds: Mapping[str, str]) -> ConversationForm | None:
    """The form that column names show without doubt; None for all others. A single text is never without doubt."""
    if any(kinds.get(c) == "list" for c in _named(columns, "messages")):
        return "messages"
    if _named(columns, "instruction") and _named(columns, "output"):
        return "instruction"
    sure = any(c.strip().lower() in _SURE_PROMPTS for c in columns)
    return "prompt" if sure and _named(columns, "completion") else None


def choose_conversation_columns(
    where: str, columns: Sequence[str], kinds: Mapping[str, str], given: Mapping[str, str]
) -> tuple[ConversationColumns, list[Choice]]:
    """The form and its columns: those that are given, checked, and the others by their names.

    Args:
        where: the file, for messages.
        columns, kinds: of the table.
        given: role -> column, as a person said.

    Raises:
        ConfigError: a role that does not exist.
        DataError: a given column is not there, or no form fits.
    """
    for role, name in given.items():
        if role not in COLUMN_NAMES:
            raise ConfigError(
                f"{setting('data.columns', {role: name})}: {role!r} is no role; there are {', '.join(ROLES)}. "
                f"{nearest(role, ROLES)}"
            )
        if name not in columns:
            raise DataError(
                f"{where} has no column {name!r} (asked for as {role}); it has {', '.join(columns)}. "
                f"{nearest(name, columns)}".rstrip()
            )
    form = _form_of(where, columns, kinds, given)
    needed, maybe = _FORMS[form]
    taken = set(given.values())
    names = {role: name for role, name in given.items() if role in (*needed, *maybe)}
    choices = []
    for role in (*needed, *maybe):
        if role in names:
            continue
        found = [c for c in _named(columns, role) if c not in taken]
        if form == "text" and not found and len(columns) == 1:
            found = list(columns)
        if found:
            names[role] = found[0]
            taken.add(found[0])
            choices.append(Choice(f"column of {role}", found[0], "its name"))
        elif role in needed:
            raise DataError(
                f"{where} has no column that is named as {role} is ({', '.join(COLUMN_NAMES[role])}); it has "
                f"{', '.join(columns)}. Say which it is with {setting('data.columns', {role: 'NAME'})}."
            )
    return ConversationColumns(form, names), choices


def refuse_unread(given: Mapping[str, str], roles: Collection[str]) -> None:
    """Raise `ConfigError` for columns that a person named and that rows of these roles don't have."""
    for role, name in given.items():
        if role not in roles:
            raise ConfigError(
                f"{setting('data.columns', {role: name})}: these rows are read as {' and '.join(roles)}, beside which "
                f"{role} is not read. Leave it out, or name the columns of one form: instruction, input and output; "
                "prompt and completion; messages; or text."
            )


def _form_of(
    where: str, columns: Sequence[str], kinds: Mapping[str, str], given: Mapping[str, str]
) -> ConversationForm:
    for form in ("messages", "instruction", "prompt", "text"):
        if any(role in given for role in _FORMS[form][0]):
            return form
    found = conversation_form(columns, kinds)
    if found is not None:
        return found
    for role in _FORMS["prompt"][0], _FORMS["text"][0]:
        if all(_named(columns, one) for one in role):
            return "prompt" if len(role) == 2 else "text"
    if len(columns) == 1:
        return "text"
    raise DataError(
        f"{where} has the columns {', '.join(columns)}; expected instruction and output, prompt and completion, "
        "messages, or text. Say which is which, such as "
        f"{setting('data.columns', {'instruction': 'NAME', 'output': 'NAME'})}, or "
        f"{setting('data.columns', {'text': 'NAME'})} for text as it stands."
    )


def _named(columns: Sequence[str], role: str) -> list[str]:
    """Columns with one of the role's names, the likeliest name first."""
    plain = {column.strip().lower(): column for column in reversed(columns)}
    return [plain[name] for name in COLUMN_NAMES[role] if name in plain]
