"""Question and context as overlapping windows: token ids, token types, and which characters each token stands for.

A context that is too long for the base is read in windows that overlap, each with the whole question before it, as
transformers' question answering example does it (the tokenizer's own pair form, cut on the context's side). This file
knows tokenizers of transformers and characters; it knows no model.

Shapes: N examples, M windows, T tokens in all, L tokens of a window, P of them context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import counted
from veneer.data.ragged import Ragged
from veneer.errors import BaseError, DataError, InputError
from veneer.naming import settable, setting

__all__ = ["Placed", "Windows", "full_lengths", "place_answers", "split_windows"]

LEAST_ROOM = 8
"""Tokens of context that a window has at least; a question that leaves less is an error."""

_MOST_FAULTS = 5

Pair = tuple[str, str]


@dataclass(frozen=True)
class Windows:
    """M windows of N examples.

    Attributes:
        ids: token ids, (L,) of each window.
        segments: token types as the tokenizer gives them; None where they are all 0.
        example: (M,) int64, rising: which example each window belongs to.
        begin: (M,) int64: the place of the first context token in its window.
        null: (M,) int64: the place that stands for "no answer here": the tokenizer's first special token, else 0.
        spans: (P, 2) int32 of each window: the characters [start, end) of the context that a context token stands for.
        lengths: (N,) int32: tokens of each example in one piece.
    """

    ids: Ragged
    segments: Ragged | None
    example: NDArray[np.int64]
    begin: NDArray[np.int64]
    null: NDArray[np.int64]
    spans: Ragged
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def examples(self) -> int:
        """N."""
        return len(self.lengths)


@dataclass(frozen=True)
class Placed:
    """Where the answers lie.

    Attributes:
        targets: (M, 2) int64: first and last token of the answer in each window; twice `null` where it is not in it.
        with_answer: windows that hold a whole answer.
        lost: (N,) bool: examples with an answer that no window holds whole.
        widened: examples whose answer begins or ends inside a token.
    """

    targets: NDArray[np.int64]
    with_answer: int
    lost: NDArray[np.bool_]
    widened: int


def split_windows(
    pairs: Iterable[Sequence[Pair]],
    tokenizer: Any,
    max_length: int,
    doc_stride: int,
    row_of: Callable[[int], str] | None = None,
) -> Windows:
    """Questions and contexts, in pieces, as windows of at most `max_length` tokens.

    Args:
        pairs: pieces of (question, context).
        tokenizer: a fast tokenizer of transformers.
        max_length: tokens of a window, special tokens included.
        doc_stride: tokens that neighbouring windows share; at most half of a window's context, so that a long question
            does not make a window for every few tokens.
        row_of: what a person calls an example; None: they are inputs.

    Raises:
        BaseError: a tokenizer that does not say which characters its tokens stand for.
        DataError: questions that leave no room for their context, with their rows (`InputError`: the first input).
    """
    _check(tokenizer)
    builder = _Builder(tokenizer)
    crowded: list[tuple[int, str]] = []
    begin = 0
    for piece in pairs:
        lengths = _lengths(piece, tokenizer)
        room = max_length - lengths[:, 0] - tokenizer.num_special_tokens_to_add(pair=True)
        for place in np.flatnonzero((room < LEAST_ROOM) & (room < lengths[:, 1])).tolist():
            says = (
                f"the question {piece[place][0][:60]!r} has {lengths[place, 0]:,} tokens and leaves "
                f"{max(0, room[place])} of {max_length} for its context"
            )
            crowded.append((begin + place, says))
        begin += len(piece)
        if crowded:
            continue
        overlap = np.minimum(doc_stride, np.maximum(room, 0) // 2)
        builder.add(piece, overlap, room, lengths, max_length)
    if crowded:
        raise _crowded(crowded, row_of)
    return builder.done()


def _crowded(found: Sequence[tuple[int, str]], row_of: Callable[[int], str] | None) -> DataError:
    longer = f", or raise {setting('max_length')}" if settable("max_length") else ""
    mend = (
        f"; expected at least {LEAST_ROOM}. Shorten or remove {'it' if len(found) == 1 else 'them'}{longer}."
    )
    if row_of is None:
        place, says = found[0]
        return InputError(place, f": {says}{mend}")
    listed = "; ".join(f"{row_of(place)}: {says}" for place, says in found[:_MOST_FAULTS])
    more = f"; and {counted(len(found) - _MOST_FAULTS, 'more row')}" if len(found) > _MOST_FAULTS else ""
    return DataError(f"{listed}{more}{mend}")


def full_lengths(pairs: Iterable[Sequence[Pair]], tokenizer: Any) -> NDArray[np.int32]:
    """(N,) tokens of each example in one piece, special tokens included."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    found = [_lengths(piece, tokenizer).sum(axis=1) + special for piece in pairs]
    return np.concatenate(found).astype(np.int32) if found else np.zeros(0, np.int32)


def _check(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise BaseError(
            f"The tokenizer {type(tokenizer).__name__} does not say which characters its tokens stand for, so that an "
            "answer can't be found in the text. Take a base with a fast tokenizer (tokenizer.json)."
        )


def _lengths(pairs: Sequence[Pair], tokenizer: Any) -> NDArray[np.int64]:
    """(n, 2) tokens of question and context, without special tokens; many questions share a context."""
    found = []
    for column in zip(*pairs, strict=True):
        texts = list(dict.fromkeys(column))
        ids = tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )["input_ids"]
        lengths = dict(zip(texts, map(len, ids), strict=True))
        found.append([lengths[text] for text in column])
    return np.array(found, np.int64).reshape(2, -1).T


@dataclass
class _Builder:
    """Windows as they come, in the order of the examples."""

    tokenizer: Any
    ids: list[list[int]] = field(default_factory=list)
    types: list[list[int]] = field(default_factory=list)
    example: list[int] = field(default_factory=list)
    begin: list[int] = field(default_factory=list)
    null: list[int] = field(default_factory=list)
    spans: list[NDArray[np.int32]] = field(default_factory=list)
    full: list[NDArray[np.int64]] = field(default_factory=list)
    done_examples: int = 0

    def add(
        self,
        pairs: Sequence[Pair],
        overlap: NDArray[np.int64],
        room: NDArray[np.int64],
        lengths: NDArray[np.int64],
        max_length: int,
    ) -> None:
        """One piece; examples that overlap alike go through the tokenizer together."""
        windows: list[list[tuple[list[int], list[int], Any]]] = [[] for _ in pairs]
        whole = lengths[:, 1] <= room
        overlap = np.where(whole, 0, overlap)
        for stride in np.unique(overlap).tolist():
            group = np.flatnonzero(overlap == stride).tolist()
            found = self._tokens([pairs[i] for i in group], max_length, stride)
            for place, owner in enumerate(found["overflow_to_sample_mapping"]):
                types = found["token_type_ids"][place] if "token_type_ids" in found else []
                windows[group[owner]].append((found["input_ids"][place], types, found.encodings[place]))
        for number, own in enumerate(windows, start=self.done_examples):
            for ids, types, encoding in own:
                self._append(number, ids, types, encoding)
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        self.full.append(lengths.sum(axis=1) + special)
        self.done_examples += len(pairs)

    def _tokens(self, pairs: Sequence[Pair], max_length: int, stride: int) -> Any:
        return self.tokenizer(
            [question for question, _ in pairs],
            [context for _, context in pairs],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            padding=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )

    def _append(self, number: int, ids: list[int], types: list[int], encoding: Any) -> None:
        inside = [place for place, owner in enumerate(encoding.sequence_ids) if owner == 1]
        begin, end = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
        self.ids.append(ids or [_filler(self.tokenizer)])
        self.types.append(types or [0] * max(1, len(ids)))
        self.example.append(number)
        self.begin.append(begin)
        self.null.append(_null_place(ids, self.tokenizer))
        self.spans.append(np.array(encoding.offsets[begin:end], np.int32).reshape(-1, 2))

    def done(self) -> Windows:
        """All of them."""
        segments = Ragged.of(self.types, np.uint8)
        spans = np.concatenate(self.spans) if self.spans else np.zeros((0, 2), np.int32)
        return Windows(
            ids=Ragged.of(self.ids, np.int32),
            segments=segments if segments.values.any() else None,
            example=np.array(self.example, np.int64),
            begin=np.array(self.begin, np.int64),
            null=np.array(self.null, np.int64),
            spans=Ragged(spans, np.cumsum([0, *map(len, self.spans)], dtype=np.int64)),
            lengths=np.concatenate(self.full).astype(np.int32) if self.full else np.zeros(0, np.int32),
        )


def _filler(tokenizer: Any) -> int:
    found = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    return int(found)


def _null_place(ids: Sequence[int], tokenizer: Any) -> int:
    """Where "no answer" stands: at the classification token, else at the beginning."""
    special = tokenizer.cls_token_id
    return ids.index(special) if special is not None and special in ids else 0


def place_answers(
    windows: Windows, answers: Sequence[tuple[int, int] | None], context_ends: Sequence[int]
) -> Placed:
    """First and last token of each example's answer in each of its windows.

    Args:
        windows: M of N examples.
        answers: N times the characters [start, end) of the context, or None where there is no answer.
        context_ends: N times the characters of the whole context.

    The answer has to lie in a window whole; else the window points at its `null` place, as in transformers' example.
    """
    targets = np.repeat(windows.null[:, None], 2, axis=1)
    lost = np.array([one is not None for one in answers], np.bool_)
    inexact = np.zeros(len(answers), np.bool_)
    for place, number in enumerate(windows.example.tolist()):
        answer = answers[number]
        spans = windows.spans[place]
        if answer is None or not len(spans):
            continue
        first = place == 0 or windows.example[place - 1] != number
        last = place + 1 == len(windows) or windows.example[place + 1] != number
        low = 0 if first else int(spans[0, 0])
        high = context_ends[number] if last else int(spans[-1, 1])
        inside = np.flatnonzero((spans[:, 0] < answer[1]) & (spans[:, 1] > answer[0]))
        if low > answer[0] or high < answer[1] or not len(inside):
            continue
        targets[place] = windows.begin[place] + inside[[0, -1]]
        lost[number] = False
        inexact[number] = spans[inside[0], 0] < answer[0] or spans[inside[-1], 1] > answer[1]
    with_answer = int((targets[:, 0] != windows.null).sum())
    return Placed(targets, with_answer, lost, int(inexact.sum()))
