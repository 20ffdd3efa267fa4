"""A loaded library of kernels: its functions with their types, and the memory that calls use and nobody keeps.

This file knows the dynamic loader's functions; what they compute is `veneer.engine.native.products`' and `kernels`'.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import torch
from torch import Tensor

from veneer.engine.native.signatures import TYPES, TYPES_OF_FROZEN

__all__ = ["SUFFIX", "Library", "function_of", "or_none", "threads"]

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""What the name of a function ends with, for each dtype that there are kernels for."""


class Library:
    """The functions by name and dtype; those of products with frozen weights only where this processor has them.

    Args:
        library: of `veneer.engine.native.build.built`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        for name, types in TYPES.items():
            for dtype, suffix in SUFFIX.items():
                self._functions[name, dtype] = function_of(library, f"{name}_{suffix}", types)
        self._frozen: dict[torch.dtype, dict[str, Any]] = {}
        for dtype, suffix in SUFFIX.items():
            possible = getattr(library, f"frozen_possible_{suffix}", None)
            if possible is not None and possible():
                self._frozen[dtype] = {
                    name: function_of(library, f"{name}_{suffix}", types)
                    for name, types in TYPES_OF_FROZEN.items()
                }
        self._room = _Room()


class _Room(threading.local):
    """Memory that calls use and nobody keeps, for each of Python's threads; it grows with what is asked for."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def floats(self, name: str, count: int) -> Tensor:
        """At least so many, with whatever stands in them."""
        if name not in self.kept or self.kept[name].numel() < count:
            self.kept.pop(name, None)
            self.kept[name] = torch.empty(count)
        return self.kept[name]


def function_of(library: ctypes.CDLL, name: str, types: tuple[Any, list[Any]]) -> Any:
    """A function of the library with the types of its result and arguments."""
    function = getattr(library, name)
    function.restype, function.argtypes = types
    return function


def threads() -> int:
    """How many compute: as many as PyTorch's."""
    return torch.get_num_threads()


def or_none(x: Tensor | None) -> int | None:
    """Where a tensor lies in memory."""
    return None if x is None else x.data_ptr()
