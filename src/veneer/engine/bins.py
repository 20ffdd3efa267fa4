"""Texts side by side in bins of one length, so that attention is few batched products of few shapes.

A batched product costs by its matrices and its elements, and a fixed amount by itself. So short texts share a bin, as
many as it holds (a mask keeps them apart), and bins of another length are opened only where they save more elements
than another round of products costs.

This file knows lengths and places, no tensors of a model.

Shapes: T tokens, n bins of a kind, L places of each, B texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veneer.engine.packing import Layout

__all__ = ["Bins", "bins_of", "one_text_each"]

_STEP = 32
"""Bins have a multiple of so many places: shapes repeat, vectors come out even."""

# In score elements of a head, measured (docs/experiments.md): what a bin costs by itself, and another length of bins.
_BIN_WORTH = 600
_LENGTH_WORTH = 12_000


@dataclass(frozen=True)
class Bins:
    """The bins of one length.

    Attributes:
        token: (n, L) int32, which token of the packed row stands in each place; T where none does.
        text: (n, L) int32, which text it belongs to; -1 where there is none.
    """

    token: NDArray[np.int32]
    text: NDArray[np.int32]

    @property
    def n(self) -> int:
        """How many."""
        return int(self.token.shape[0])

    @property
    def places(self) -> int:
        """L."""
        return int(self.token.shape[1])

    @cached_property
    def alone(self) -> bool:
        """Whether no bin holds more than one text."""
        return bool(np.all((self.text == self.text[:, :1]) | (self.text < 0)))

    @cached_property
    def full(self) -> bool:
        """Whether every place is taken."""
        return bool(np.all(self.text >= 0))

    def together(self) -> NDArray[np.bool_]:
        """(n, L, L) whether two places hold the same text; empty places belong together, so that no row is empty."""
        found: NDArray[np.bool_] = self.text[:, :, None] == self.text[:, None, :]
        return found


def bins_of(layout: Layout) -> tuple[Bins, ...]:
    """The texts of a layout in bins, made once for it; the shortest texts first."""
    if "bins" not in layout.derived:
        lengths = layout.lengths
        layout.derived["bins"] = tuple(
            _filled(layout, first, *_first_fit(lengths[first:end], places), places)
            for first, end, places in _divided(lengths)
        )
    found: tuple[Bins, ...] = layout.derived["bins"]
    return found


def one_text_each(layout: Layout) -> tuple[Bins, ...]:
    """The layout's groups as bins that hold a text each, in order."""
    if "one text each" not in layout.derived:
        found: list[Bins] = []
        first = 0
        for group in layout.groups:
            nothing = np.zeros(group.n, dtype=np.int64)
            found.append(_filled(layout, first, np.arange(group.n), nothing, group.longest))
            first += group.n
        layout.derived["one text each"] = tuple(found)
    each: tuple[Bins, ...] = layout.derived["one text each"]
    return each


def _divided(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first text, end, L) of each kind of bins, by lengths that rise: the division that costs least."""
    sizes = np.asarray(lengths, dtype=np.int64)
    steps = -(-sizes // _STEP)
    ends = np.append(np.flatnonzero(np.diff(steps)) + 1, len(sizes)).tolist()  # where a number of steps ends
    before = np.concatenate([[0], np.cumsum(sizes)])
    best: list[tuple[float, list[tuple[int, int, int]]]] = [(0.0, [])]
    for j, end in enumerate(ends):
        L = int(steps[end - 1]) * _STEP
        options = []
        for i in range(j + 1):  # one kind of bins for the texts from `first` on
            first = 0 if i == 0 else ends[i - 1]
            long = end - max(first, int(np.searchsorted(sizes, L // 2, side="right")))
            n = max(-(-int(before[end] - before[first]) // L), long)
            cost = best[i][0] + n * (L * L + _BIN_WORTH) + _LENGTH_WORTH
            options.append((cost, [*best[i][1], (first, end, L)]))
        best.append(min(options))
    return best[-1][1]


def _first_fit(lengths: Sequence[int], places: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bin, place in it) of each text: the longest first, each into the first bin that has room for it."""
    bins, starts = np.empty(len(lengths), dtype=np.int64), np.empty(len(lengths), dtype=np.int64)
    room: list[int] = []
    for text in range(len(lengths) - 1, -1, -1):
        size = lengths[text]
        at = next((i for i, free in enumerate(room) if free >= size), len(room))
        if at == len(room):
            room.append(places)
        bins[text], starts[text] = at, places - room[at]
        room[at] -= size
    return bins, starts


def _filled(
    layout: Layout, first: int, bins: NDArray[np.int64], starts: NDArray[np.int64], places: int
) -> Bins:
    """The bins with the texts from number `first` on in them."""
    T, sizes = layout.tokens, np.asarray(layout.lengths, dtype=np.int64)
    begin = int(sizes[:first].sum())
    sizes = sizes[first : first + len(bins)]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    where = np.repeat(bins * places + starts, sizes) + within
    shape = int(bins.max()) + 1, places
    token = np.full(shape[0] * places, T, dtype=np.int32)
    text = np.full(shape[0] * places, -1, dtype=np.int32)
    token[where] = np.arange(begin, begin + len(where), dtype=np.int32)
    text[where] = np.repeat(np.arange(first, first + len(bins), dtype=np.int32), sizes)
    return Bins(token.reshape(shape), text.reshape(shape))
