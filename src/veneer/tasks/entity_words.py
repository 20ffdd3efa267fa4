"""Texts whose words are told apart: what is known of them beside their tokens, and found entities as answers.

It knows words, tags and characters; it knows no model and no label of its own.

Shapes: N texts, W words of a text that have a token, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.entities import EntityRows
from veneer.data.ragged import Ragged
from veneer.data.tags import Entity, bio_tags
from veneer.data.words import Places, join_words
from veneer.errors import InputError
from veneer.tasks.base import Answer, Input

__all__ = ["ReadWords", "answer_of", "given_words", "of_words"]


@dataclass(frozen=True)
class ReadWords:
    """What is known of encoded texts beside their tokens.

    Attributes:
        words: (W, 4) of each text, see `WordTokens.words`.
        rows: the labelled rows, if the texts are such.
        given: the texts and, where they were given as tokens, the places of those.
    """

    words: Ragged
    rows: EntityRows | None = None
    given: tuple[tuple[str, Places | None], ...] = ()

    def text(self, place: int) -> tuple[str, Places | None]:
        """A text, and its tokens where it was given as such."""
        if self.rows is None:
            return self.given[place]
        row = self.rows[place]
        return row.text, row.words if self.rows.columns.form == "tags" else None


def of_words(rows: NDArray[np.int64], entities: Iterable[Entity]) -> list[Entity]:
    """Entities of the W words that are read, as entities of all words of their text.

    rows  (W, 4), see `WordTokens.words`
    """
    return [(int(rows[first, 2]), int(rows[stop - 1, 3]), kind) for first, stop, kind in entities]


def answer_of(
    text: str,
    tokens: Places | None,
    rows: NDArray[np.int64],
    entities: Iterable[Entity],
    best: NDArray[np.float64],
) -> Answer:
    """The answer for one text.

    Args:
        text: the text.
        tokens: where its tokens are, if it was given as such.
        rows: (W, 4), see `WordTokens.words`.
        entities: as words that are read.
        best: (W,) the probability of each word's label.
    """
    entities = list(entities)
    spans: list[dict[str, Any]] = []
    for first, stop, kind in entities:
        start, end = int(rows[first, 0]), int(rows[stop - 1, 1])
        score = round(float(best[first:stop].mean()), 6)
        spans.append({"start": start, "end": end, "label": kind, "text": text[start:end], "score": score})
    if tokens is None:
        return {"entities": spans}
    wide = of_words(rows, entities)
    for span, (first, stop, _) in zip(spans, wide, strict=True):
        span["tokens"] = [first, stop]
    return {"entities": spans, "tags": bio_tags(len(tokens), wide)}


def given_words(one: Input, place: int) -> tuple[str, Places | None]:
    """The text of an input, and its words where it came as tokens."""
    if isinstance(one, str):
        return one, None
    if set(one) == {"text"} and isinstance(one["text"], str):
        return one["text"], None
    if set(one) == {"tokens"}:
        try:
            tokens = json.loads(one["tokens"])
        except (TypeError, ValueError):
            tokens = None
        if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            return join_words(tokens)
    raise InputError(
        place,
        f" gives {' and '.join(map(repr, one)) or 'nothing'}; this adapter reads 'text', or 'tokens' "
        "as a JSON list of strings.",
    )
