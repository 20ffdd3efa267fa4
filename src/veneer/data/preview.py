"""What a model will read, before it reads it: label counts, lengths, cuts, repeats, and examples token by token.

Plain data; showing it is the command line's and the report's. The tokenizer comes in as two functions, so that an
example may be anything that has tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice
from veneer.data.prepared import PreparedData
from veneer.data.tokens import LengthStats, length_stats

__all__ = [
    "Preview",
    "PreviewText",
    "ShowTokens",
    "ShownToken",
    "copies",
    "measured_rows",
    "preview",
    "varied",
]

MOST_TEXTS = 20_000
"""Lengths are measured on at most so many texts of each split, taken evenly."""


@dataclass(frozen=True)
class ShownToken:
    """One token as a person sees it.

    text     the characters it stands for; a special token's name
    special  whether it was put there by the tokenizer or the template
    read     whether the model gets it, or it is cut off
    target   whether the loss reads it
    tag      what it is to be told as, where each token has a label of its own
    begins   what begins with it, in words, where an example is read in several copies
    """

    text: str
    special: bool = False
    read: bool = True
    target: bool = False
    tag: str = ""
    begins: str = ""


ShowTokens = Callable[[str], Sequence[ShownToken]]
"""A text -> its tokens, those that are cut off included."""


@dataclass(frozen=True)
class PreviewText:
    """An example: its split, place in the split, labels, tokens before any cut, and the tokens themselves."""

    split: str
    place: int
    labels: tuple[str, ...]
    length: int
    text: str
    tokens: tuple[ShownToken, ...]


def copies(tokens: Sequence[ShownToken]) -> list[tuple[str, Sequence[ShownToken]]]:
    """The tokens of an example, of each copy apart, with what begins there; ("", all of them) where there is one."""
    borders = [place for place, token in enumerate(tokens) if token.begins and place] + [len(tokens)]
    firsts = [0, *borders[:-1]]
    return [
        (tokens[first].begins if len(tokens) else "", tokens[first:end])
        for first, end in zip(firsts, borders, strict=True)
    ]


@dataclass(frozen=True)
class Preview:
    """The data as the model will read it.

    label_counts   split -> label -> texts
    lengths        split -> statistics of token counts, special tokens included, before any cut
    histogram      (upper bound of the bin in tokens, texts in it), of the training texts
    cut            split -> texts that are longer than `max_length`; of the texts measured
    measured       split -> texts that were measured
    longer         what becomes of longer ones, in words; "" where there are none, or nobody knows
    read_tokens    split -> tokens that the model reads of the texts measured; {}: nobody knows
    loss_tokens    split -> tokens of them that the loss reads; {} where it reads texts as wholes
    """

    label_counts: Mapping[str, Mapping[str, int]]
    lengths: Mapping[str, LengthStats]
    histogram: tuple[tuple[int, int], ...]
    max_length: int | None
    cut: Mapping[str, int]
    measured: Mapping[str, int]
    counts: Mapping[str, int]
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    examples: tuple[PreviewText, ...]
    shortest: PreviewText | None
    longest: PreviewText | None
    longer: str = ""
    read_tokens: Mapping[str, int] = field(default_factory=dict)
    loss_tokens: Mapping[str, int] = field(default_factory=dict)

    def says(self) -> tuple[str, ...]:
        """The lengths of the training texts, the long ones of all parts, and what the loss reads: a line each."""
        stats = self.lengths["train"]
        lines = [f"shortest {stats.shortest:,}, mean {stats.mean:,.0f}, longest {stats.longest:,} tokens"]
        if self.max_length is not None:
            n = sum(self.cut.values())
            long = f"{f'{n:,}' if n else 'none'} longer than the {self.max_length:,} that are read"
            lines.append(f"{long}: {self.longer}" if n and self.longer else long)
        if "train" in self.loss_tokens:
            loss, read = self.loss_tokens["train"], self.read_tokens["train"]
            lines.append(f"the loss reads {loss:,} of {read:,} tokens ({100 * loss / max(1, read):.1f} %)")
        return tuple(lines)

    def bins(self) -> tuple[tuple[int, int, int], ...]:
        """First and last number of tokens of each bin, and its texts; without the empty ones at the beginning."""
        found: list[tuple[int, int, int]] = []
        low = 1
        for bound, n in self.histogram:
            if found or n:
                found.append((low, bound, n))
            low = bound + 1
        return tuple(found)


def preview(
    prepared: PreparedData,
    lengths_of: Callable[[Any], NDArray[np.int32]],
    show: Callable[[Any, int], PreviewText],
    *,
    max_length: int | None = None,
    n: int = 5,
    most: int = MOST_TEXTS,
    known: Mapping[str, NDArray[np.int32]] | None = None,
) -> Preview:
    """Measure and show: `n` training examples of as many labels as there are, the shortest and the longest.

    Args:
        prepared: the rows.
        lengths_of: rows -> (N,) tokens of each example before any cut.
        show: rows and a place in them -> the example as the model reads it.
        max_length: tokens that are read.
        n: examples to show.
        most: texts of each split that are measured.
        known: split -> the same lengths, of the texts that are measured, where somebody has them already.
    """
    lengths: dict[str, NDArray[np.int32]] = {}
    places: dict[str, NDArray[np.int64]] = {}
    for split in prepared.splits:
        places[split.name] = measured_rows(len(split), most)
        rows = split.select(places[split.name])
        own = (known or {}).get(split.name)
        if own is None:
            own = lengths_of(rows) if len(rows) else np.zeros(0, np.int32)
        assert len(own) == len(rows)
        lengths[split.name] = own
    limit = max_length if max_length is not None else np.iinfo(np.int32).max
    own, at, train = lengths["train"], places["train"], prepared.train
    return Preview(
        label_counts={split.name: prepared.label_counts(split) for split in prepared.splits},
        lengths={name: length_stats(values) for name, values in lengths.items()},
        histogram=_histogram(own),
        max_length=max_length,
        cut={name: int((values > limit).sum()) for name, values in lengths.items()},
        measured={name: len(values) for name, values in lengths.items()},
        counts=prepared.counts,
        choices=prepared.choices,
        warnings=prepared.warnings,
        examples=tuple(show(train, place) for place in varied(train, n)),
        shortest=show(train, int(at[own.argmin()])) if len(own) else None,
        longest=show(train, int(at[own.argmax()])) if len(own) else None,
    )


def measured_rows(n: int, most: int = MOST_TEXTS) -> NDArray[np.int64]:
    """Places of the rows of a split of n that a preview measures: at most `most`, spread evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)) if n else np.zeros(0, np.int64)


def _histogram(lengths: NDArray[np.int32], bins: int = 12) -> tuple[tuple[int, int], ...]:
    """Counts in bins of one whole width, from 1 to the longest."""
    if not len(lengths):
        return ()
    width = max(1, -(-int(lengths.max()) // bins))
    counts = np.bincount(np.maximum(lengths - 1, 0) // width)
    return tuple(((place + 1) * width, int(count)) for place, count in enumerate(counts))


def varied(rows: Any, n: int) -> list[int]:
    """Places of `n` examples: the first of each label in turn; the first ones where there are no labels."""
    labels = getattr(rows, "labels", None)
    if labels is None or labels.dtype == np.float64:
        return list(range(min(n, len(rows))))
    labels = labels if labels.ndim == 1 else labels.argmax(axis=1)
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank[mine] = np.arange(len(mine))
    found: list[int] = np.argsort(rank, kind="stable")[:n].tolist()
    return found
