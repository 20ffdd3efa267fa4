"""Prompts: what people give as one, as turns, and as the tokens after which an answer begins.

This file knows turns, templates and tokenizers; it knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from veneer.data.conversations import Turn
from veneer.errors import DataError
from veneer.tasks.encoding import special_ends
from veneer.tasks.rendered import Renderer, Rendering
from veneer.tasks.templates import Template

__all__ = ["Prompt", "answer_ends", "only_text", "prompt_ids", "rendered_prompt", "text_ids", "turns_of"]

Prompt: TypeAlias = str | Mapping[str, Any] | Sequence[Turn | Mapping[str, Any]]
"""A text; a row (instruction and input, prompt, or messages; system); or a conversation."""

_ROLES = ("system", "user", "assistant")


def turns_of(prompt: Prompt) -> tuple[Turn, ...]:
    """A prompt as turns, the last of which asks.

    Raises:
        DataError: it is none; the message says what is wrong.

    >>> turns_of({"instruction": "Translate.", "input": "Hallo"})
    (Turn(role='user', content='Translate.', input='Hallo'),)
    """
    if isinstance(prompt, str):
        turns = [Turn("user", prompt)]
    elif isinstance(prompt, Mapping):
        turns = _row_turns(prompt)
    else:
        turns = [_turn(message, number) for number, message in enumerate(prompt, start=1)]
    if not turns or turns[-1].role != "user":
        raise DataError("the last message has to be the user's, which the answer is to follow.")
    if not (turns[-1].content.strip() or turns[-1].input.strip()):
        raise DataError("it is empty; there is nothing to answer.")
    if any("\ud800" <= c <= "\udfff" for turn in turns for c in turn.content + turn.input):
        raise DataError("it holds bytes that are no UTF-8 text; save or type it as UTF-8.")
    if any(turn.role == "system" for turn in turns[1:]):
        raise DataError("only the first message can be of the system.")
    return tuple(turns)


def only_text(turns: Sequence[Turn]) -> str:
    """The one text of a prompt without template. Raises `DataError` where there are several turns."""
    if len(turns) != 1:
        raise DataError(
            "without a template there is one text to go on with: leave out the system prompt and earlier messages, or "
            "use a base that has a chat template."
        )
    return "\n\n".join(part for part in (turns[0].content, turns[0].input) if part)


def _row_turns(row: Mapping[str, Any]) -> list[Turn]:
    system = [Turn("system", str(row["system"]))] if row.get("system") else []
    if "messages" in row:
        return [*system, *(_turn(message, number) for number, message in enumerate(row["messages"], start=1))]
    for name in ("instruction", "prompt", "text"):
        if name in row:
            return [*system, Turn("user", str(row[name] or ""), str(row.get("input") or ""))]
    raise DataError(
        f"it has the keys {', '.join(map(str, row)) or '(none)'}; expected prompt, instruction (and input), or "
        "messages."
    )


def _turn(message: Turn | Mapping[str, Any], number: int) -> Turn:
    if isinstance(message, Turn):
        return message
    role, content = (
        message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content")
    )
    if role not in _ROLES or not isinstance(content, str):
        raise DataError(
            f"message {number} is {str(message)[:80]!r}; expected an object with role (system, user or assistant) and "
            "content (a text)."
        )
    return Turn(str(role), content)


def prompt_ids(template: Template, turns: Sequence[Turn], tokenizer: Any) -> list[int]:
    """The tokens of a conversation up to where the answer begins, as in training.

    Raises:
        DataError: the template can't show these turns, or the tokenizer has no end of text.
    """
    return rendered_prompt(template, turns, tokenizer).parts[-1].ids


def rendered_prompt(template: Template, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
    """As `prompt_ids`, with whose words the template writes nothing of. Errors as there."""
    try:
        return Renderer(template, tokenizer).asked([turns])[0]
    except ValueError as error:
        raise DataError(f"{error.args[-1]}.") from error


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that goes on as it stands: with the tokenizer's beginning, and without its end."""
    found = tokenizer(text, return_attention_mask=False, return_token_type_ids=False, verbose=False)[
        "input_ids"
    ]
    _, behind = special_ends(tokenizer)
    return [int(token) for token in found[: len(found) - behind]]


def answer_ends(template: Template, tokenizer: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What a template writes behind an answer, beside the end of text: a special token, or some words.

    Returns:
        Token ids and texts that end an answer, each none or one.
    """
    if template.origin == "none":
        return (), ()
    try:
        pieces = template.pieces([Turn("user", "a"), Turn("assistant", "b")], tokenizer)
    except ValueError:  # a template that needs more than this; what it writes is known when it is used
        return (), ()
    end = pieces[-1].text.partition("b")[2].strip() if pieces[-1].answer else ""
    if not end:
        return (), ()
    special = {
        str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    first = max((text for text in special if end.startswith(text)), key=len, default=None)
    return ((special[first],), ()) if first is not None else ((), (end,))
