"""Rows of different lengths in one array: labels of tokens, or what a head says of each of them.

    >>> labels = Ragged.of([[1, 2], [3], [4, 5, 6]])
    >>> labels[1].tolist(), labels[np.array([2, 0])].values.tolist(), len(labels)
    ([3], [4, 5, 6, 1, 2], 3)

It knows arrays of numpy and nothing of what the numbers mean.

Shapes: M rows, T values in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

__all__ = ["Ragged"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """M rows end to end.

    Attributes:
        values: (T, ...) all rows, one after the other.
        offsets: (M + 1,) int64: row i is values[offsets[i]:offsets[i + 1]].
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[npt.ArrayLike], dtype: npt.DTypeLike = np.int64) -> Self:
        """Rows as they come; of no rows at all an empty one."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        lengths = [len(array) for array in arrays]
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        return cls(values, np.cumsum([0, *lengths], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) values of each row."""
        return np.diff(self.offsets)

    @overload
    def __getitem__(self, rows: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, rows: NDArray[Any]) -> Ragged: ...
    def __getitem__(self, rows: int | NDArray[Any]) -> NDArray[Any] | Ragged:
        """One row, or the rows of these numbers in this order."""
        if isinstance(rows, np.ndarray):
            lengths = self.lengths[rows]
            ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), lengths]), dtype=np.int64)
            places = np.arange(ends[-1]) - np.repeat(ends[:-1] - self.offsets[:-1][rows], lengths)
            return Ragged(self.values[places], ends)
        if not -len(self) <= rows < len(self):
            raise IndexError(f"row {rows} of {len(self)}")
        rows %= len(self)
        return np.asarray(self.values[self.offsets[rows] : self.offsets[rows + 1]])
