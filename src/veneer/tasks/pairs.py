"""Two texts as one row of tokens, in the tokenizer's own form for a pair.

BERT writes [CLS] a [SEP] b [SEP] and marks the second text by its token types; RoBERTa writes <s> a </s></s> b </s> and
marks nothing; GPT-2 puts b right behind a. A pair that is too long loses tokens from the end of the longer text, one by
one (transformers' "longest_first"). This file knows tokenizers and no task.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.preview import ShownToken
from veneer.data.ragged import Ragged
from veneer.data.tokens import TokenStore, tokenize
from veneer.errors import ConfigError
from veneer.naming import setting

__all__ = ["EncodedPairs", "encode_pairs", "join_warning", "pair_store", "separator_of", "shown_pair"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class EncodedPairs:
    """Token ids of N pairs; their token types, where the model tells the texts apart by them; tokens before the cut."""

    ids: list[list[int]]
    types: list[list[int]] | None
    full_lengths: NDArray[np.int32]


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair], max_length: int | None = None) -> EncodedPairs:
    """Tokenise pairs, cut to `max_length` tokens (None: not at all).

    Raises:
        ConfigError: `max_length` leaves no room beside the special tokens.
    """
    special = int(tokenizer.num_special_tokens_to_add(pair=True))
    if max_length is not None and max_length < special + 2:
        raise ConfigError(
            f"{setting('max_length')} is {max_length}, and {special} special tokens of a pair take that up; "
            "expected more."
        )
    typed = "token_type_ids" in tokenizer.model_input_names
    found = _tokens(tokenizer, pairs, typed, {})
    ids, types = [list(row) for row in found["input_ids"]], found["token_type_ids"] if typed else None
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    long = [] if max_length is None else np.flatnonzero(lengths > max_length).tolist()
    if long:
        cut = {"truncation": "longest_first", "max_length": max_length}
        shorter = _tokens(tokenizer, [pairs[place] for place in long], typed, cut)
        for number, place in enumerate(long):
            ids[place] = list(shorter["input_ids"][number])
            if types is not None:
                types[place] = shorter["token_type_ids"][number]
    return EncodedPairs(ids, None if types is None else [list(row) for row in types], lengths)


def _tokens(tokenizer: Any, pairs: Sequence[Pair], typed: bool, cut: dict[str, Any]) -> Any:
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    return tokenizer(
        firsts, seconds, **cut, return_attention_mask=False, return_token_type_ids=typed, verbose=False
    )


def pair_store(
    pieces: Iterable[Sequence[Pair]], tokenizer: Any, max_length: int
) -> tuple[TokenStore, Ragged | None]:
    """The token ids of many pairs in a compact store, and their token types where there are any."""
    types: list[NDArray[np.uint8]] = []
    lengths: list[NDArray[np.int32]] = []

    def encode(pairs: list[Pair]) -> list[list[int]]:
        found = encode_pairs(tokenizer, pairs, max_length)
        lengths.append(found.full_lengths)
        types.extend(np.array(row, np.uint8) for row in found.types or ())
        return found.ids

    store = tokenize(pieces, encode, vocab_size=len(tokenizer))
    full = np.concatenate(lengths) if lengths else np.zeros(0, np.int32)
    return replace(store, full_lengths=full), Ragged.of(types, np.uint8) if types else None


def separator_of(tokenizer: Any) -> bool:
    """Whether the tokenizer puts anything between the two texts of a pair."""
    return len(tokenizer("a", "b")["input_ids"]) > len(tokenizer("a")["input_ids"]) + len(
        tokenizer("b", add_special_tokens=False)["input_ids"]
    )


def join_warning(tokenizer: Any, name: str) -> str | None:
    """What to be warned of where nothing tells the model where the second text begins."""
    if separator_of(tokenizer):
        return None
    return (
        f"The tokenizer of {name} puts nothing between the two texts of a pair, so the model sees one running text. An "
        "encoder such as BERT or RoBERTa is told where the second one begins."
    )


def shown_pair(tokenizer: Any, pair: Pair, max_length: int) -> tuple[ShownToken, ...]:
    """The tokens of a pair as a person sees them, those that are cut off marked as not read."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(
        *pair, return_special_tokens_mask=True, return_offsets_mapping=fast, truncation=False, verbose=False
    )
    names = tokenizer.convert_ids_to_tokens(found["input_ids"])
    if not fast:
        return tuple(
            ShownToken(n, special=bool(s)) for n, s in zip(names, found["special_tokens_mask"], strict=True)
        )
    shorter = tokenizer(*pair, truncation="longest_first", max_length=max_length, verbose=False)
    kept = {text: shorter.sequence_ids().count(text) for text in (0, 1)}
    of, seen, done, shown = found.sequence_ids(), [0, 0], [0, 0], []
    for place, name in enumerate(names):
        text = of[place]
        if text is None:
            shown.append(ShownToken(name, special=True))
            continue
        end = found["offset_mapping"][place][1]
        piece = pair[text][done[text] : end] if end > done[text] else name
        done[text] = max(done[text], end)
        shown.append(ShownToken(piece, read=seen[text] < kept[text]))
        seen[text] += 1
    return tuple(shown)
