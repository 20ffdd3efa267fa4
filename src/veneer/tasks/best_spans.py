"""The best answer of an example from its windows' start and end scores.

A span's score is the score of its first token as a start plus that of its last as an end. Every span inside of a
window's context up to a length is looked at, not only those among the best starts and ends, so that the best one is
found. This file knows numbers and characters; it knows no model and no tokenizer.

Shapes: N examples, M windows, P context tokens of a window, D the longest span in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veneer.data.characters import whole_characters
from veneer.data.ragged import Ragged
from veneer.tasks.windows import Windows

__all__ = ["Candidate", "Candidates", "best_spans"]


@dataclass(frozen=True)
class Candidate:
    """Characters [start, end) of the context, and the score (start + end logit)."""

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Candidates:
    """Of one example: its best spans, the best first, and the score of "no answer" (the least of its windows)."""

    spans: tuple[Candidate, ...]
    none: float

    @property
    def margin(self) -> float:
        """The score of "no answer" less that of the best span."""
        return self.none - (self.spans[0].score if self.spans else -np.inf)


def best_spans(
    logits: Ragged, windows: Windows, contexts: Sequence[str], *, longest: int, n_best: int
) -> list[Candidates]:
    """The `n_best` different spans of each example.

    Args:
        logits: M times (L, 2): start and end logit of each token.
        windows: M windows of N examples.
        contexts: N texts.
        longest: D, tokens of a span.
        n_best: how many to keep; spans of the same characters count once, with their best score.

    White space at a span's ends is not part of it; a letter keeps its accents, and an emoji is never cut.
    """
    found: list[dict[tuple[int, int], float]] = [{} for _ in contexts]
    none = np.full(len(contexts), np.inf)
    for place, number in enumerate(windows.example.tolist()):
        values = logits[place].astype(np.float64)
        null = values[windows.null[place]].sum()
        none[number] = min(none[number], float(null))
        spans = windows.spans[place]
        begin = int(windows.begin[place])
        inside = values[begin : begin + len(spans)]
        for first, last, score in _window(inside, longest, n_best):
            characters = _trimmed(contexts[number], int(spans[first, 0]), int(spans[last, 1]))
            if characters is not None and score > found[number].get(characters, -np.inf):
                found[number][characters] = score
    return [
        Candidates(_ranked(spans, n_best), float(score)) for spans, score in zip(found, none, strict=True)
    ]


def _window(values: NDArray[np.float64], longest: int, n_best: int) -> list[tuple[int, int, float]]:
    """(P, 2) -> first and last token and score of the best spans; four times as many as wanted, since several may stand
    for the same characters.
    """
    size = len(values)
    if not size:
        return []
    reach = min(longest, size)
    ends = np.full(size + reach - 1, -np.inf)
    ends[:size] = values[:, 1]
    scores = values[:, :1] + np.lib.stride_tricks.sliding_window_view(ends, reach)  # (P, D)
    flat = scores.reshape(-1)
    wanted = min(4 * n_best, len(flat))
    top = np.argpartition(-flat, wanted - 1)[:wanted]
    top = top[np.argsort(-flat[top], kind="stable")]
    return [
        (int(i) // reach, int(i) // reach + int(i) % reach, float(flat[i]))
        for i in top
        if np.isfinite(flat[i])
    ]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The characters without white space at their ends and with whole ones there; None where nothing is left."""
    piece = text[start:end]
    kept = piece.strip()
    if not kept:
        return None
    begin = start + len(piece) - len(piece.lstrip())
    return whole_characters(text, begin, begin + len(kept))


def _ranked(spans: dict[tuple[int, int], float], n_best: int) -> tuple[Candidate, ...]:
    """The best first; of equal scores the one that begins first."""
    order = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    return tuple(Candidate(start, end, score) for (start, end), score in order)
