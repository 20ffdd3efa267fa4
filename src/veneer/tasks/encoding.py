"""Texts to token ids, with the tokenizer's own special tokens.

Short lists for a prediction, and whole data sets ahead of time. Both cut a text that is too long at its end, special
tokens kept; pairs of texts are in `pairs`. This file knows tokenizers of transformers and no task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.preview import ShownToken, ShowTokens
from veneer.data.tokens import TokenStore, tokenize

__all__ = ["TokenLists", "encode_texts", "special_ends", "token_shower", "token_store"]


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
    """Token ids of each text; one that has no token at all gets a single padding token."""
    cut = {"truncation": True, "max_length": max_length} if max_length else {}
    found = tokenizer(
        list(texts), **cut, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    filler = [_filler(tokenizer)]
    return [ids or filler for ids in found["input_ids"]]


def token_store(pieces: Iterable[Sequence[str]], tokenizer: Any, max_length: int) -> TokenStore:
    """The token ids of many texts, in pieces, in a compact store."""
    prefix, suffix = special_ends(tokenizer)
    return tokenize(
        pieces,
        lambda texts: encode_texts(tokenizer, texts),
        max_length=max_length,
        prefix=prefix,
        suffix=suffix,
        vocab_size=len(tokenizer),
    )


def special_ends(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and after a text.

    BERT: (1, 1); GPT-2: (0, 0); Llama: (1, 0).
    """
    marks = tokenizer("a", return_special_tokens_mask=True, return_token_type_ids=False)[
        "special_tokens_mask"
    ]
    inside = [place for place, special in enumerate(marks) if not special]
    if not inside:
        return 0, 0
    return inside[0], len(marks) - 1 - inside[-1]


def token_shower(tokenizer: Any, max_length: int) -> ShowTokens:
    """A function from a text to its tokens as a person sees them, those beyond `max_length` marked as not read.

    A token shows the text that it stands for, with the blanks before it; one that stands for a part of a character
    shows the tokenizer's own name for it.
    """
    _, suffix = special_ends(tokenizer)

    def show(text: str) -> list[ShownToken]:
        spans = bool(getattr(tokenizer, "is_fast", False))
        found = tokenizer(
            text,
            return_special_tokens_mask=True,
            return_offsets_mapping=spans,
            truncation=False,
            verbose=False,
        )
        names = tokenizer.convert_ids_to_tokens(found["input_ids"])
        ends = found["offset_mapping"] if spans else [(0, 0)] * len(names)
        n, done, shown = len(names), 0, []
        for place, (name, special) in enumerate(zip(names, found["special_tokens_mask"], strict=True)):
            read = n <= max_length or place < max_length - suffix or place >= n - suffix
            end = ends[place][1]
            piece = name if special or end <= done else text[done:end]
            done = done if special else max(done, end)
            shown.append(ShownToken(piece, special=bool(special), read=read))
        return shown

    return show


def _filler(tokenizer: Any) -> int:
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return 0


class TokenLists:
    """Lists of token ids as `veneer.tasks.base.TokenSequences`."""

    def __init__(self, ids: Sequence[Sequence[int]]) -> None:
        self._ids = ids
        self.lengths = np.array([len(row) for row in ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        return np.asarray(self._ids[index])
