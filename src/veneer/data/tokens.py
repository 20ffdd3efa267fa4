"""Texts tokenised ahead of time into one flat array: two bytes a token for most vocabularies.

It gets the tokenizer as a function from texts to lists of ids, and knows no tokenizer library.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from veneer.errors import ConfigError
from veneer.naming import setting

__all__ = ["EncodeBatch", "LengthStats", "TokenStore", "length_stats", "tokenize"]

EncodeBatch = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts -> the ids of each, special tokens included, nothing cut."""

T = TypeVar("T")

IN_MEMORY_TOKENS = 64_000_000
Ids = NDArray[Any]  # uint16 or int32


@dataclass(frozen=True)
class LengthStats:
    """Token counts of many texts. `percentiles` are of 5, 25, 50, 75, 95 and 99 %; `total` adds all up."""

    texts: int
    total: int
    shortest: int
    longest: int
    mean: float
    percentiles: dict[int, int]


@dataclass(frozen=True)
class TokenStore:
    """The token ids of n texts, end to end.

    ids        (total,) uint16 or int32, in memory or mapped from an unnamed file
    offsets    (n + 1,) int64: text i is ids[offsets[i]:offsets[i + 1]]
    full_lengths   (n,) int32: tokens of each text before it was cut
    """

    ids: Ids
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> Ids:
        """The ids of one text, a view."""
        if not -len(self) <= place < len(self):
            raise IndexError(f"text {place} of {len(self)}")
        place %= len(self)
        return self.ids[self.offsets[place] : self.offsets[place + 1]]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(n,) int32: tokens of each text as stored."""
        return np.diff(self.offsets).astype(np.int32)

    @property
    def cut(self) -> int:
        """How many texts were cut."""
        return int((self.full_lengths > self.lengths).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest text before anything was cut."""
        return int(self.full_lengths.max(initial=0))


def tokenize(
    texts: Iterable[Sequence[T]],
    encode_batch: Callable[[list[T]], Sequence[Sequence[int]]],
    *,
    max_length: int | None = None,
    prefix: int = 0,
    suffix: int = 0,
    side: Literal["left", "right"] = "right",
    vocab_size: int | None = None,
) -> TokenStore:
    """Tokenise pieces of texts, such as `(texts for texts, _ in split.batches())`, or of pairs of them.

    encode_batch     texts -> the ids of each, special tokens included, nothing cut
    max_length       tokens that a text may have, special tokens included; None: no limit
    prefix, suffix   how many special tokens stand at either end; they are never cut
    side             where a text that is too long loses tokens
    vocab_size       ids are below it; up to 65,536 they take two bytes, else (or None) four

    Raises `ConfigError` where `max_length` leaves no room for the text.
    """
    if max_length is not None and max_length <= prefix + suffix:
        raise ConfigError(
            f"{setting('max_length')} is {max_length}, and {prefix + suffix} special tokens take that up; "
            "expected more."
        )
    dtype = np.uint16 if vocab_size is not None and vocab_size <= 2**16 else np.int32
    sink = _Sink(np.dtype(dtype))
    stored: list[NDArray[np.int64]] = []
    full: list[NDArray[np.int32]] = []
    for piece in texts:
        rows = encode_batch(list(piece))
        full.append(np.fromiter(map(len, rows), np.int32, len(rows)))
        kept = [_cut(row, max_length, prefix, suffix, side) for row in rows]
        stored.append(np.fromiter(map(len, kept), np.int64, len(kept)))
        sink.write([token for row in kept for token in row])
    offsets = np.concatenate([np.zeros(1, np.int64), *stored]).cumsum()
    return TokenStore(sink.finish(), offsets, np.concatenate(full) if full else np.zeros(0, np.int32))


def _cut(row: Sequence[int], most: int | None, prefix: int, suffix: int, side: str) -> Sequence[int]:
    if most is None or len(row) <= most:
        return row
    room, end = most - prefix - suffix, len(row) - suffix
    body = row[prefix : prefix + room] if side == "right" else row[end - room : end]
    return [*row[:prefix], *body, *row[end:]]


class _Sink:
    """Ids in memory, and from `IN_MEMORY_TOKENS` on in a file without a name, which goes when it is let go."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.pieces: list[Ids] = []
        self.held = self.total = 0
        self.file: IO[bytes] | None = None

    def write(self, ids: Sequence[int]) -> None:
        """Put ids behind the others; each has to fit `dtype`."""
        block = np.asarray(ids, dtype=np.int64)
        limit = np.iinfo(self.dtype).max
        assert not len(block) or (block.min() >= 0 and block.max() <= limit), (
            "an id is outside of the vocabulary"
        )
        self.pieces.append(block.astype(self.dtype))
        self.held += len(block)
        self.total += len(block)
        if self.held > IN_MEMORY_TOKENS:
            self._spill()

    def _spill(self) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115
        for piece in self.pieces:
            self.file.write(piece.tobytes())
        self.pieces, self.held = [], 0

    def finish(self) -> Ids:
        """(total,) all ids of `dtype`, in memory or mapped from the file; the last call."""
        if self.file is None:
            return np.concatenate(self.pieces) if self.pieces else np.zeros(0, self.dtype)
        self._spill()
        self.file.flush()
        mapped = np.memmap(self.file, self.dtype, "r", shape=(self.total,))
        self.file.close()  # the mapping keeps what it needs
        return mapped


def length_stats(lengths: NDArray[np.int32]) -> LengthStats:
    """Statistics of token counts (n,); all zero where there are none."""
    if not len(lengths):
        return LengthStats(0, 0, 0, 0, 0.0, {})
    wanted = (5, 25, 50, 75, 95, 99)
    found = np.percentile(lengths, wanted, method="inverted_cdf")
    return LengthStats(
        texts=len(lengths),
        total=int(lengths.sum(dtype=np.int64)),
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        mean=float(lengths.mean(dtype=np.float64)),
        percentiles=dict(zip(wanted, map(int, found), strict=True)),
    )
