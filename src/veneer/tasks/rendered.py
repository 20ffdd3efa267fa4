"""Conversations and texts as token ids, with a mark on each token that the loss reads.

The tokens of a prompt are exactly those that generation begins with: a part of a conversation keeps its tokens whatever
comes after it. Where the tokenizer would merge across the end of a prompt, the answer is tokenised apart. An answer
ends with the end-of-text token, and the loss always reads it.

This file knows tokenizers and templates; it knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from veneer.data.conversations import Conversation, Turn
from veneer.errors import DataError
from veneer.tasks.encoding import special_ends
from veneer.tasks.templates import Piece, Template

__all__ = ["NOT_READ", "Cut", "Loss", "Rendered", "Renderer", "Rendering", "hidden_note", "next_labels"]

_T = TypeVar("_T")

Loss = Literal["answer", "all"]
Cut = Literal["left", "right"]

NOT_READ = -100
"""The label of a place that the loss does not read, as in transformers."""


@dataclass(frozen=True)
class Rendered:
    """An example as tokens, before any cut.

    ids     n token ids
    read    n flags: the loss reads how well this token is foretold (never the first one)
    lead    how many tokens at the beginning are the tokenizer's own marks
    """

    ids: list[int]
    read: list[bool]
    lead: int = 0

    def cut(self, max_length: int, side: Cut) -> Rendered:
        """At most `max_length` tokens: without the first ones after the marks (left), or without the last ones."""
        if len(self.ids) <= max_length:
            return self
        if side == "right":
            return Rendered(self.ids[:max_length], self.read[:max_length], self.lead)
        start, lead = len(self.ids) - (max_length - self.lead), self.lead
        # What is left begins without what was before it: its first token is not read.
        read = [*self.read[:lead], False, *self.read[start + 1 :]]
        return Rendered([*self.ids[:lead], *self.ids[start:]], read, lead)

    def answers_cut(self, max_length: int, side: Cut) -> tuple[int, int]:
        """How many answers (runs of tokens that the loss reads) a cut takes a part of, and how many whole."""
        whole = np.array(self.read, np.bool_)
        kept = np.zeros(len(whole), np.bool_)
        if side == "right":
            kept[:max_length] = whole[:max_length]
        else:
            start = len(whole) - (max_length - self.lead)
            kept[: self.lead] = whole[: self.lead]
            kept[start + 1 :] = whole[start + 1 :]
        begins = np.flatnonzero(whole & ~np.append(False, whole[:-1]))
        if len(whole) <= max_length or not len(begins):
            return 0, 0
        had, left = (np.add.reduceat(flags.astype(np.int64), begins) for flags in (whole, kept))
        return int(((left > 0) & (left < had)).sum()), int((left == 0).sum())

    def blocks(self, max_length: int) -> list[Rendered]:
        """Parts of at most `max_length` tokens; each begins with the last token of the one before, so that every token
        is foretold once.
        """
        step = max(1, max_length - 1)
        found = []
        for start in range(0, max(1, len(self.ids) - 1), step):
            read = self.read[start : start + max_length]
            found.append(Rendered(self.ids[start : start + max_length], [False, *read[1:]]))
        return found


def next_labels(one: Rendered) -> list[int]:
    """At each place the token that comes next where the loss reads it, else -100."""
    pairs = zip(one.ids[1:], one.read[1:], strict=True)
    return [*(token if read else NOT_READ for token, read in pairs), NOT_READ]


@dataclass(frozen=True)
class Rendering:
    """A conversation as tokens: once, or one up to each answer that the whole writes otherwise.

    parts     the last one is the whole
    unread    answers that the loss reads in none of them
    hidden    whose words the template writes nothing of: "system", "user"
    """

    parts: list[Rendered]
    unread: int = 0
    hidden: tuple[str, ...] = ()


def hidden_note(role: str, where: str, mend: str) -> str:
    """What a person should know where words of `role` are hidden.

    >>> hidden_note("system", " in 2 of 3 prompts", "Put it into the question.")[:66]
    'The template writes nothing of the system prompt in 2 of 3 prompts'
    """
    what = "system prompt" if role == "system" else "user's words"
    return f"The template writes nothing of the {what}{where}, so that the model never sees it. {mend}"


def _hidden(turns: Sequence[Turn], pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Roles of turns, other than answers, whose words stand nowhere in the rendered text."""
    text = " ".join("".join(piece.text for piece in pieces).split())
    missing = (
        turn.role
        for turn in turns
        if turn.role != "assistant"
        and any(" ".join(part.split()) not in text for part in (turn.content, turn.input))
    )
    return tuple(dict.fromkeys(missing))


@dataclass(frozen=True)
class Renderer:
    """A template with a tokenizer.

    Raises `DataError` when it is made of a tokenizer without an end-of-text token.
    """

    template: Template
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                "The base's tokenizer has no end-of-text token (eos_token), so an answer could not end. Set one in its "
                "tokenizer_config.json."
            )

    @property
    def end(self) -> int:
        """The id of the end-of-text token."""
        return int(self.tokenizer.eos_token_id)

    def holds_specials(self, one: Conversation) -> bool:
        """Whether somebody's words hold the text of a special token, which is read as that token."""
        words = [one.text or "", *(part for turn in one.turns for part in (turn.content, turn.input))]
        return any(mark in text for mark in self.tokenizer.all_special_tokens for text in words)

    def lead(self) -> list[int]:
        """The tokens that stand before every text: Llama's begin-of-text, nothing for GPT-2."""
        begin, _ = special_ends(self.tokenizer)
        return [int(token) for token in self.tokenizer("a")["input_ids"][:begin]]

    def conversations(self, many: Sequence[Conversation], loss: Loss) -> list[Rendering]:
        """Conversations with answers, rendered.

        Raises:
            ValueError: the template can't show one; `args` are its place among `many` and what is wrong.
        """
        every = [self._tried(self.template.renderings, place, one.turns) for place, one in enumerate(many)]
        ids = iter(self._tokenised([pieces for one in every for pieces in one.all]))
        return [
            Rendering(
                [
                    self._marked(pieces, next(ids), loss if number == len(one.all) - 1 else "answer")
                    for number, pieces in enumerate(one.all)
                ],
                one.unread,
                _hidden(turns.turns, one.all[-1]),
            )
            for turns, one in zip(many, every, strict=True)
        ]

    def texts(self, many: Sequence[str]) -> list[Rendered]:
        """Texts as they stand, each with its end; the loss reads all but the marks at the beginning."""
        lead = self.lead()
        found = []
        for ids in self._ids(many):
            whole = [*lead, *ids, self.end]
            read = [place >= max(1, len(lead)) for place in range(len(whole))]
            found.append(Rendered(whole, read, len(lead)))
        return found

    def prompts(self, many: Sequence[Sequence[Turn]]) -> list[list[int]]:
        """Turns up to where an answer begins, as training has them.

        Raises:
            ValueError: as `conversations`.
        """
        return [one.parts[-1].ids for one in self.asked(many)]

    def asked(self, many: Sequence[Sequence[Turn]]) -> list[Rendering]:
        """As `prompts`, and whose words the template writes nothing of.

        Raises:
            ValueError: as `conversations`.
        """
        every = [self._tried(self.template.pieces, place, turns) for place, turns in enumerate(many)]
        return [
            Rendering([self._marked(pieces, ids, "all")], hidden=_hidden(turns, pieces))
            for turns, pieces, ids in zip(many, every, self._tokenised(every), strict=True)
        ]

    def _tried(self, render: Callable[[Sequence[Turn], Any], _T], place: int, turns: Sequence[Turn]) -> _T:
        """What `render` makes of the turns; its error with their place."""
        try:
            return render(turns, self.tokenizer)
        except ValueError as error:
            raise ValueError(place, str(error)) from None

    def open_texts(self, many: Sequence[str]) -> list[list[int]]:
        """The beginnings of texts, without an end."""
        lead = self.lead()
        return [[*lead, *ids] for ids in self._ids(many)]

    def _marked(self, pieces: list[Piece], ids: list[list[int]], loss: Loss) -> Rendered:
        lead = [] if self.template.writes_specials else self.lead()
        whole, read = list(lead), [False] * len(lead)
        for number, (piece, tokens) in enumerate(zip(pieces, ids, strict=True)):
            if not piece.answer:
                whole += tokens
                read += [loss == "all"] * len(tokens)
                continue
            tokens, own = self._ended(tokens, last=number == len(pieces) - 1)
            whole += tokens
            read += [loss == "all" or place < own for place in range(len(tokens))]
        if read:
            read[0] = False
        return Rendered(whole, read, len(lead))

    def _ended(self, tokens: list[int], *, last: bool) -> tuple[list[int], int]:
        """An answer's tokens, and how many of them are its own: up to its end.

        What a template writes behind the end (a line break) is not the answer's; the last answer goes without it.
        """
        if self.end in tokens and self.template.origin != "none":
            own = len(tokens) - tokens[::-1].index(self.end)
            return (tokens[:own], own) if last else (tokens, own)
        return ([*tokens, self.end], len(tokens) + 1) if last else (tokens, len(tokens))

    def _tokenised(self, every: list[list[Piece]]) -> list[list[list[int]]]:
        """Token ids of each piece: those of the whole text as far as they end where the piece ends, else its own."""
        so_far = []
        for pieces in every:
            text = ""
            for piece in pieces:
                text += piece.text
                so_far.append(text)
        wholes = iter(self._ids(so_far))
        found = []
        for pieces in every:
            known: list[int] = []
            parts = []
            for piece in pieces:
                whole = next(wholes)
                if whole[: len(known)] == known:
                    parts.append(whole[len(known) :])
                else:
                    parts.append(self._ids([piece.text])[0])
                known = known + parts[-1]
            found.append(parts)
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids
