"""One text, or two, as the input of a task: how rows of a table and what a person asks become tokens.

Classification and regression share it. This file knows texts, tokenizers and splits; it knows no label.

Shapes: N texts or pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.preview import PreviewText
from veneer.data.ragged import Ragged
from veneer.data.rows import Split
from veneer.errors import InputError
from veneer.naming import setting
from veneer.tasks.base import Encoded, Input
from veneer.tasks.encoding import TokenLists, encode_texts, token_shower, token_store
from veneer.tasks.kind import Making
from veneer.tasks.pairs import Pair, encode_pairs, join_warning, pair_store, shown_pair

__all__ = [
    "PAIR",
    "TEXT",
    "encode_given",
    "encode_split",
    "given_of",
    "given_texts",
    "joined",
    "lengths_of",
    "note_join",
    "shown_text",
]

TEXT = ("text",)
PAIR = ("text", "text_pair")


def encode_split(split: Split, tokenizer: Any, max_length: int) -> Encoded:
    """The texts or pairs of a split with their labels as targets."""
    targets = np.asarray(split.labels)
    types: Ragged | None = None
    if split.pair_column is None:
        store = token_store((texts for texts, _ in split.batches()), tokenizer, max_length)
    else:
        store, types = pair_store(_pairs(split), tokenizer, max_length)
    return Encoded(
        store,
        targets,
        segments=types,
        details=split,
        cut=store.cut,
        longest=store.longest,
        full_lengths=store.full_lengths,
    )


def _pairs(split: Split, size: int = 4096) -> Iterator[list[Pair]]:
    for start in range(0, len(split), size):
        seconds = split.pairs(start, start + size)
        assert seconds is not None  # there is a column of them
        yield list(zip(split.texts(start, start + size), seconds, strict=True))


def encode_given(
    inputs: Sequence[Input], names: tuple[str, ...], tokenizer: Any, max_length: int | None
) -> Encoded:
    """Inputs as tokens. Raises `DataError` for one that has not what `names` says."""
    texts = [given_texts(one, names, place) for place, one in enumerate(inputs)]
    if len(names) == 1:
        return Encoded(TokenLists(encode_texts(tokenizer, [text for text, *_ in texts], max_length)))
    found = encode_pairs(tokenizer, [(first, second) for first, second in texts], max_length)
    types = None if found.types is None else Ragged.of(found.types, np.uint8)
    return Encoded(TokenLists(found.ids), segments=types)


def given_texts(one: Input, names: tuple[str, ...], place: int = 0) -> tuple[str, ...]:
    """The texts of an input by their names; a text alone where one is asked for.

    >>> given_texts("a", ("text",)), given_texts({"text": "a", "text_pair": "b"}, ("text", "text_pair"))
    (('a',), ('a', 'b'))

    Raises:
        DataError: a text is missing, or there is one too many.
    """
    given: Mapping[str, str] = {names[0]: one} if isinstance(one, str) else one
    if set(given) == set(names) and all(isinstance(text, str) for text in given.values()):
        return tuple(given[name] for name in names)
    wanted = " and ".join(repr(name) for name in names)
    got = " and ".join(repr(name) for name in given) or "nothing"
    raise InputError(
        place,
        f" gives {got}; this adapter reads {wanted}, each of them a text. Give the second one as "
        f"{setting('call.pair', plain=repr(names[1]))}."
        if len(names) > 1
        else f" gives {got}; this adapter reads {wanted}, a text.",
    )


def given_of(split: Split, places: Sequence[int]) -> list[Input]:
    """The inputs of some rows, as `encode_given` takes them."""
    rows = split.select(np.asarray(places, np.int64))
    seconds = rows.pairs()
    if seconds is None:
        return list(rows.texts())
    return [dict(zip(PAIR, pair, strict=True)) for pair in zip(rows.texts(), seconds, strict=True)]


def lengths_of(split: Split, tokenizer: Any) -> NDArray[np.int32]:
    """(N,) tokens of each text or pair, nothing cut."""
    if split.pair_column is None:
        found = [len(row) for texts, _ in split.batches(1024) for row in encode_texts(tokenizer, texts)]
        return np.array(found, np.int32)
    parts = [encode_pairs(tokenizer, pairs).full_lengths for pairs in _pairs(split, 1024)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)


def shown_text(
    split: Split, place: int, labels: tuple[str, ...], tokenizer: Any, max_length: int
) -> PreviewText:
    """A row as the model reads it."""
    text, seconds = split[place], split.pairs(place, place + 1)
    if seconds is None:
        tokens = tuple(token_shower(tokenizer, max_length)(text))
    else:
        tokens = shown_pair(tokenizer, (text, seconds[0]), max_length)
        text = f"{text}\n{seconds[0]}"
    return PreviewText(split.name, place, labels, len(tokens), text, tokens)


def note_join(made: Making) -> None:
    """Warn, in the notes of what is made, where pairs are read and nothing stands between their texts."""
    said = (
        join_warning(made.base.tokenizer, made.base.name) if made.prepared.columns.pair is not None else None
    )
    made.notes.warnings += [said] if said else []


def joined(split: Split) -> list[str]:
    """The texts, those of a pair on two lines: for baselines and for people."""
    seconds = split.pairs()
    if seconds is None:
        return split.texts()
    return [f"{first}\n{second}" for first, second in zip(split.texts(), seconds, strict=True)]
