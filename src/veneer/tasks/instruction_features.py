"""Rendered examples as features: cut or in blocks, labels shifted once, rows without any label refused.

This file knows tokens; it knows no template and no model.

Shapes: M features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import counted
from veneer.data.ragged import Ragged
from veneer.data.tokens import TokenStore
from veneer.errors import ConfigError, DataError
from veneer.naming import settable, setting
from veneer.tasks.base import Encoded
from veneer.tasks.rendered import NOT_READ, Cut, Rendering, hidden_note, next_labels

__all__ = ["Details", "Features"]


class Details(NamedTuple):
    """What is known of M features beside their tokens.

    asked      (M,) int64: where the last answer begins; 0 where nothing tells
    """

    asked: NDArray[np.int64]


class Features:
    """Features as they come, and what is said about them in the end.

    Args:
        max_length: tokens of a feature, at least 2.
        vocabulary: ids are below it.
        cut: where a long example loses tokens.
        blocks: whether a long example becomes several features instead.
        answers: whether what the loss reads are answers.
    """

    def __init__(
        self, max_length: int, vocabulary: int, *, cut: Cut, blocks: bool, answers: bool = True
    ) -> None:
        if max_length < 2:
            raise ConfigError(
                f"{setting('max_length')} is {max_length}; a token that is foretold needs one before it: 2 at least."
            )
        self.max_length, self.side, self.in_blocks, self.answers = max_length, cut, blocks, answers
        self.dtype = np.uint16 if vocabulary <= 2**16 else np.int32
        self.ids: list[NDArray[Any]] = []
        self.labels: list[NDArray[np.int32]] = []
        self.full: list[int] = []
        self.example: list[int] = []
        self.asked: list[int] = []
        self.examples = self.cut = self.longest = 0
        self.lost: list[int] = []
        self.whole: list[int] = []
        self.with_specials = 0
        self.in_copies = self.copies = self.partly = self.unread = 0
        self.hidden: Counter[str] = Counter()
        self.cut_in_part = self.cut_whole = 0

    def add(self, one: Rendering, row: int) -> None:
        """An example; `row` is its number for people."""
        length = max(len(part.ids) for part in one.parts)
        self.longest = max(self.longest, length)
        self.unread += one.unread
        self.hidden.update(one.hidden)
        self.partly += one.unread > 0
        if len(one.parts) > 1:
            self.in_copies += 1
            self.copies += len(one.parts)
        if self.in_blocks:
            (text,) = one.parts
            kept = [(part, len(part.ids)) for part in text.blocks(self.max_length)]
        else:
            kept = [(part.cut(self.max_length, self.side), len(part.ids)) for part in one.parts]
            self.cut += any(len(part.ids) > self.max_length for part in one.parts)
            for part in one.parts if self.answers else ():
                in_part, whole = part.answers_cut(self.max_length, self.side)
                self.cut_in_part += in_part
                self.cut_whole += whole
        kept = [(part, full) for part, full in kept if any(part.read)]
        if not kept:
            self.lost.append(row)
            return
        for part, full in kept:
            labels = next_labels(part)
            self.ids.append(np.asarray(part.ids, self.dtype))
            self.labels.append(np.asarray(labels, np.int32))
            self.full.append(full)
            self.example.append(self.examples)
            self.asked.append(_answer_begins(labels))
        self.whole.append(length)
        self.examples += 1

    def done(self, where: str, part: str) -> Encoded:
        """All of them."""
        if self.lost:
            side = {"left": "right", "right": "left"}[self.side]
            first = ", ".join(f"{row:,}" for row in self.lost[:5]) + (", ..." if len(self.lost) > 5 else "")
            raise DataError(
                f"{where}, {part}: {counted(len(self.lost), 'row')} (row {first}, counted from 1) of which no token "
                f"that the loss reads is left within {self.max_length} tokens, so nothing can be learnt from them. "
                f"{_mend(side)} or remove them."
            )
        ids = Ragged.of(self.ids, self.dtype)
        store = TokenStore(ids.values, ids.offsets, np.asarray(self.full, np.int32))
        several = len(self.example) > self.examples
        return Encoded(
            store,
            targets=Ragged.of(self.labels, np.int32),
            example=np.asarray(self.example, np.int64) if several else None,
            details=Details(np.asarray(self.asked, np.int64)),
            cut=self.cut,
            longest=self.longest,
            full_lengths=np.asarray(self.whole, np.int32),
            warnings=self._warnings(part),
        )

    def _warnings(self, part: str) -> tuple[str, ...]:
        """What a person should know of how the rows were read, with counts."""
        found = []
        if self.with_specials:
            found.append(
                f"{counted(self.with_specials, 'row')} of {part} with the text of a special token (such as the end of "
                "text) in somebody's words; it is read as that token, so that a text may seem to end there."
            )
        if self.in_copies:
            copies = f"{self.copies:,} texts for {counted(self.in_copies, 'conversation')} of {part}"
            found.append(
                "The template writes earlier answers otherwise once another follows (as those of reasoning models do). "
                f"Each is learnt as it is asked, in a copy of its conversation up to there: {copies}."
                if part in ("train", "inputs")
                else f"Likewise {copies}."
            )
        for role, n in self.hidden.items():
            mend = f"Take another template ({setting('options.template', 'NAME')}), or put it into the first question."
            found.append(hidden_note(role, f" in {counted(n, 'conversation')} of {part}", mend))
        if self.cut_in_part or self.cut_whole:
            longer = (
                f" Raise {setting('max_length')} if the base reads more." if settable("max_length") else ""
            )
            found.append(
                f"The cut to {self.max_length:,} tokens takes a part of {counted(self.cut_in_part, 'answer')} of "
                f"{part}, and {counted(self.cut_whole, 'answer')} whole, which the loss then does not read.{longer}"
            )
        if self.unread:
            found.append(
                f"{counted(self.unread, 'answer')} in {counted(self.partly, 'conversation')} of {part} can't be told "
                "apart from what is asked in this template, so that the loss does not read them. Take another one "
                f"({setting('options.template', 'NAME')}), or conversations that end with the answer to be learnt."
            )
        return tuple(found)


def _mend(side: str) -> str:
    if not settable("max_length"):
        return "Shorten"
    cut = setting("options.cut", side)
    return f"Raise {setting('max_length')}, cut from the {side} ({cut}), or shorten"


def _answer_begins(labels: Sequence[int]) -> int:
    """The place of the first token of the last answer: of the last run of labels; 0 where it begins the text."""
    last = len(labels) - 1
    while last >= 0 and labels[last] == NOT_READ:
        last -= 1
    while last >= 0 and labels[last] != NOT_READ:
        last -= 1
    return last + 2 if last >= 0 else 0
