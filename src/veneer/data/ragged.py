"""Rows of different lengths as two flat arrays: numbers for each word of each row, say.

It knows numbers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ragged"]


@dataclass(frozen=True)
class Ragged:
    """n rows of numbers, end to end.

    values    (total, ...) the numbers of all rows
    offsets   (n + 1,) int64: row i is values[offsets[i]:offsets[i + 1]]
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any] | NDArray[Any]], dtype: Any) -> Ragged:
        """From rows, one after the other."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        ends = np.cumsum([0, *map(len, arrays)]).astype(np.int64)
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, dtype), ends)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) int64: how many numbers each row has."""
        return np.diff(self.offsets)

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, rows: slice | NDArray[Any]) -> Ragged: ...
    def __getitem__(self, rows: int | np.integer[Any] | slice | NDArray[Any]) -> NDArray[Any] | Ragged:
        """The numbers of one row, a view; or some rows, in the order given (row numbers, a slice or a mask)."""
        if isinstance(rows, int | np.integer):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)}")
            place = int(rows) % len(self)
            return self.values[self.offsets[place] : self.offsets[place + 1]]
        chosen = np.arange(len(self))[rows]
        lengths = self.lengths[chosen]
        ends = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        places = np.arange(ends[-1]) + np.repeat(self.offsets[chosen] - ends[:-1], lengths)
        return Ragged(self.values[places], ends)
