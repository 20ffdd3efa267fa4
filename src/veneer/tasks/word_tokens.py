"""Words and the tokens that stand for them: where the label of each word is read, and long texts in windows.

The label of a word is read at its first token that stands for any of its characters. A text that is too long for the
base is read in overlapping windows, and each word in the one window where it stands farthest from an edge, so that no
word is unseen and none is read twice. This file knows tokenizers of transformers and characters; it knows no label.

Shapes: N texts, M windows, W words of a text that have a token, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.ragged import Ragged
from veneer.data.tokens import TokenStore, tokenize
from veneer.data.words import Places
from veneer.errors import BaseError, ConfigError
from veneer.naming import setting
from veneer.tasks.encoding import special_ends

__all__ = ["READ", "UNREAD", "TextTokens", "WordTokens", "token_words", "whole_text", "word_tokens"]

READ, UNREAD = 0, -100
"""Marks of tokens: one whose state the head reads, and all others."""

_PIECE = 1024  # texts tokenised at a time
_OVERLAP = 4  # neighbouring windows share this part of a window's tokens: a quarter


@dataclass(frozen=True)
class TextTokens:
    """One text.

    ids       token ids, special ones included
    special   which of them the tokenizer added
    spans     (T, 2) the characters that each stands for; (0, 0) of special ones
    """

    ids: Sequence[int]
    special: Sequence[int]
    spans: NDArray[np.int64]


@dataclass(frozen=True)
class WordTokens:
    """N texts as M windows.

    Attributes:
        ids: token ids of the windows.
        reads: (T,) int64 of each window: `READ` at the tokens that words are read at, else `UNREAD`.
        example: (M,) int64, rising: which text each window belongs to.
        words: (W, 4) int64 of each text: first character and the one after the last, first word and the one after the
            last. The windows of a text read its words in this order. Words that share one token stand together; a word
            without any token is left out.
        lengths: (N,) int32 tokens of each text in one piece.
    """

    ids: TokenStore
    reads: Ragged
    example: NDArray[np.int64]
    words: Ragged
    lengths: NDArray[np.int32]


def word_tokens(texts: Iterable[tuple[str, Places]], tokenizer: Any, max_length: int) -> WordTokens:
    """Texts, with the places of their words, as a model reads them.

    Raises:
        BaseError: a tokenizer that does not say which characters its tokens stand for.
        ConfigError: `max_length` leaves no room for a text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise BaseError(
            f"The tokenizer {type(tokenizer).__name__} does not say which characters its tokens stand for, so that "
            "entities can't be found in the text. Take a base with a fast tokenizer (tokenizer.json)."
        )
    ends = special_ends(tokenizer)
    if max_length < sum(ends) + 8:
        raise ConfigError(
            f"{setting('max_length')} is {max_length}, of which special tokens take {sum(ends)}; expected at "
            "least 8 more."
        )
    reads: list[NDArray[np.int64]] = []
    example: list[int] = []
    words: list[NDArray[np.int64]] = []
    lengths: list[int] = []

    def windows() -> Iterator[list[list[int]]]:
        for tokens, places in _tokenised(texts, tokenizer):
            found = token_words(tokens.spans, places)
            lengths.append(len(tokens.ids))
            cut = _windows(tokens, found[:, 4], ends, max_length, _filler(tokenizer))
            words.append(found[:, :4])
            for _, marks in cut:
                reads.append(marks)
                example.append(len(words) - 1)
            yield [ids for ids, _ in cut]

    store = tokenize(windows(), lambda rows: rows, vocab_size=len(tokenizer))
    return WordTokens(
        ids=store,
        reads=Ragged.of(reads),
        example=np.array(example, np.int64),
        words=_stacked(words),
        lengths=np.array(lengths, np.int32),
    )


def _stacked(words: list[NDArray[np.int64]]) -> Ragged:
    values = np.concatenate(words) if words else np.zeros((0, 4), np.int64)
    return Ragged(values, np.cumsum([0, *map(len, words)], dtype=np.int64))


def _tokenised(texts: Iterable[tuple[str, Places]], tokenizer: Any) -> Iterator[tuple[TextTokens, Places]]:
    rest = iter(texts)
    while piece := list(islice(rest, _PIECE)):
        found = tokenizer(
            [text for text, _ in piece],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            verbose=False,
        )
        for place, (_, words) in enumerate(piece):
            spans = np.array(found["offset_mapping"][place], np.int64).reshape(-1, 2)
            special = found["special_tokens_mask"][place]
            spans[np.array(special, np.bool_)] = 0
            yield TextTokens(found["input_ids"][place], special, spans), words


def whole_text(text: str, words: Places, tokenizer: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One text in one piece: the marks of its tokens (T,), and its words (W, 4)."""
    ((tokens, _),) = _tokenised([(text, words)], tokenizer)
    found = token_words(tokens.spans, words)
    marks = np.full(len(tokens.ids), UNREAD, np.int64)
    marks[found[:, 4]] = READ
    return marks, found[:, :4]


def token_words(spans: NDArray[np.int64], words: Places) -> NDArray[np.int64]:
    """(W, 5): the four numbers of `WordTokens.words`, and the token that each word is read at.

    Args:
        spans: (T, 2) characters of each token, ascending; empty ones stand for nothing.
        words: characters of each word.
    """
    found: list[list[int]] = []
    token = 0
    for number, (start, end) in enumerate(words):
        while token < len(spans) and (spans[token, 1] <= start or spans[token, 0] == spans[token, 1]):
            token += 1
        if start == end or token == len(spans) or spans[token, 0] >= end:
            continue  # the tokenizer leaves it out
        first = token
        if found and found[-1][4] >= first:
            # Its first token belongs to the word before: look for one of its own.
            first = found[-1][4] + 1
            while first < len(spans) and spans[first, 0] == spans[first, 1]:
                first += 1
            if first == len(spans) or spans[first, 0] >= end:
                found[-1][1], found[-1][3] = end, number + 1
                continue
        found.append([start, end, number, number + 1, first])
    return np.array(found, np.int64).reshape(-1, 5)


Window = tuple[list[int], NDArray[np.int64]]
"""Token ids, and the marks of the tokens."""


def _windows(
    tokens: TextTokens, firsts: NDArray[np.int64], ends: tuple[int, int], max_length: int, filler: int
) -> list[Window]:
    """One text in windows of at most `max_length` tokens, special tokens at both ends of each.

    firsts  (W,) the token that each word is read at, ascending
    """
    ids = list(tokens.ids) or [filler]
    marks = np.full(len(ids), UNREAD, np.int64)
    marks[firsts] = READ
    if len(ids) <= max_length:
        return [(ids, marks)]
    prefix, suffix = ends
    body = len(ids) - prefix - suffix
    room = max_length - prefix - suffix
    starts = list(range(0, max(1, body - room), room - room // _OVERLAP))
    starts = [*(s for s in starts if s + room < body), body - room]
    owner = _owners(firsts - prefix, np.array(starts), room)
    found = []
    for number, start in enumerate(starts):
        inside = slice(prefix + start, prefix + start + room)
        own = np.full(len(ids), UNREAD, np.int64)
        own[firsts[owner == number]] = READ
        edges = [UNREAD] * prefix, [UNREAD] * suffix
        whole = [*ids[:prefix], *ids[inside], *ids[len(ids) - suffix :]]
        found.append((whole, np.concatenate([edges[0], own[inside], edges[1]]).astype(np.int64)))
    return found


def _owners(places: NDArray[np.int64], starts: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """(W,) the window in which each place (W,) stands farthest from an edge; the first of two alike."""
    left = places[:, None] - starts[None, :]  # (W, windows)
    right = starts[None, :] + room - 1 - places[:, None]
    return np.asarray(np.minimum(left, right).argmax(axis=1))


def _filler(tokenizer: Any) -> int:
    """What a text without any token is read as."""
    found = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    return int(found)
