"""Hidden states in a file, read a few rows at a time.

A mapped file of a gigabyte would count as this process's memory, page after page as it is read. Read and written in
pieces it does not: the system keeps of it in memory what there is room for, and gives that room to whoever needs it.

This file knows files and tensors only. T rows of C numbers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veneer.errors import VeneerError

__all__ = ["KeptStates"]


class KeptStates:
    """(T, C) states of one dtype, row after row.

    Args:
        path: an existing file; it stays open, so that nobody's clearing up takes it away while it is used.
        shape: (T, C).
        dtype: of the states.
        writing: whether rows are to be written as well.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], dtype: torch.dtype, *, writing: bool = False
    ) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._file = path.open("r+b" if writing else "rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()  # of the place in the file

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    def read(self, ranges: Sequence[tuple[int, int]]) -> Tensor:
        """(rows of all ranges, C): rows first to end - 1 of each range, one range after the other.

        Raises:
            VeneerError: the file is shorter than it was.
        """
        out = torch.empty(sum(end - first for first, end in ranges), self.shape[1], dtype=self.dtype)
        bytes_of, at = _bytes(out), 0
        with self._lock:
            for first, end in ranges:
                size = (end - first) * self._row_bytes
                self._file.seek(first * self._row_bytes)
                if self._file.readinto(bytes_of[at : at + size]) != size:
                    raise VeneerError(
                        f"{self.path} has been cut short while it was read. Delete it and run again; it is made anew."
                    )
                at += size
        return out

    def write(self, first: int, states: Tensor) -> None:
        """Rows from `first` on: (n, C) of the dtype, on the CPU."""
        with self._lock:
            self._file.seek(first * self._row_bytes)
            left = _bytes(states.contiguous())
            while left:  # a disk that fills up takes a part, and says so the next time
                left = left[self._file.write(left) or 0 :]

    def close(self) -> None:
        """No more rows are read or written."""
        self._file.close()


def _bytes(states: Tensor) -> memoryview:
    """The memory of a contiguous (n, C) tensor."""
    raw: Any = states.view(-1).view(torch.uint8).numpy()
    return memoryview(raw)
