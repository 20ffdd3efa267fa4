"""The compiled products: what LoRA adds to a frozen layer, with its gradients, and both as one with the frozen weight.

This file knows tensors and the functions of `source/`; it knows no layer and no model. Shapes: see `kernels`.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from veneer.engine.native.library import Library, function_of, or_none, threads
from veneer.engine.native.signatures import LANES, NO_ADAPTERS, TYPES_OF_ROOM, Adapters

__all__ = ["FROZEN_STEP", "Products"]

FROZEN_STEP = {torch.float32: LANES, torch.bfloat16: 32}
"""Of what a frozen weight's inputs and outputs are multiples where the kernels take it."""

_SHAPES = 4096  # of products, whose sizes of scratch are remembered


class Products(Library):
    """Products with adapters.

    Args:
        library: of `veneer.engine.native.build.built`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        self._wanted = {name: function_of(library, name, types) for name, types in TYPES_OF_ROOM.items()}
        self._sizes = lru_cache(maxsize=_SHAPES)(self._sizes_of)

    def lora_forward(self, x: Tensor, y: Tensor, adapters: Adapters) -> Tensor:
        """Add to y (R, N) what the adapters make of x (R, n); -> (R, L) fp32, x A^T of each, for `lora_backward`."""
        (M, K), N = x.shape, y.shape[1]
        h = torch.empty(M, adapters.width)
        self._functions["lora_forward", x.dtype](
            x.data_ptr(), y.data_ptr(), *self._shared_by_all(M, K, N, adapters.given, h, adapters.width)
        )
        return h

    def lora_backward(
        self, grad: Tensor, x: Tensor | None, h: Tensor | None, of_x: Tensor | None, adapters: Adapters
    ) -> list[Tensor]:
        """From the gradient of y (R, N): that of x is added to `of_x` (R, n); -> those of A_1, B_1, A_2, ..., in fp32.

        Args:
            grad: of y.
            x, h: what `lora_forward` was given and gave; None: the factors' gradients are not wanted, and none come.
            of_x: None: not wanted.
            adapters: as in `lora_forward`.
        """
        M, N = grad.shape
        K, ld = adapters.parts[0].A.shape[1], adapters.width
        given, found = _with_gradients(adapters, x)
        u = self._room.floats("u", M * ld)
        self._functions["lora_backward", grad.dtype](
            grad.data_ptr(),
            or_none(x),
            or_none(h),
            or_none(of_x),
            *self._shared_by_all(M, K, N, given, u, ld),
        )
        return found

    def takes_frozen(self, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
        """Whether there are products with a frozen weight of this dtype and shape."""
        step = FROZEN_STEP[dtype]
        return dtype in self._frozen and not outputs % step and not inputs % step

    def frozen_tiles(self, weight: Tensor, *, transposed: bool) -> Tensor:
        """A contiguous weight (N, n), or (n, N) if `transposed` -> (N, n), laid out as the products want it."""
        N, K = reversed(weight.shape) if transposed else weight.shape
        tiles = weight.new_empty(N, K)
        self._frozen[weight.dtype]["frozen_tiles"](
            weight.data_ptr(), transposed, N, K, tiles.data_ptr(), threads()
        )
        return tiles

    def frozen_forward(
        self,
        x: Tensor,
        tiles: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> tuple[Tensor, Tensor | None]:
        """x (R, n) -> x W^T + bias (N,) + residual (R, N) + what adapters make of x, rounded once; and x A^T.

        Args:
            tiles: W (N, n), of `frozen_tiles`.
            adapters: as in `lora_forward`, which says what the second is; None without any.
        """
        (M, K), N = x.shape, tiles.shape[0]
        given, ld = adapters.given, adapters.width
        if not self._frozen[x.dtype]["frozen_takes"](M, K, given, len(given)):
            more = None if residual is None else _filled(residual)
            y = self.frozen_forward(_filled(x), tiles, bias, more)[0][:M]
            return y, self.lora_forward(x, y, adapters) if ld else None
        y, h = x.new_empty(M, N), torch.empty(M, ld) if ld else None
        self._frozen[x.dtype]["frozen_forward"](
            x.data_ptr(),
            tiles.data_ptr(),
            or_none(bias),
            or_none(residual),
            y.data_ptr(),
            *self._shared_by_all(M, K, N, given, h, ld, (x.dtype, M, K, N)),
        )
        return y, h

    def frozen_backward(
        self,
        grad: Tensor,
        tiles: Tensor,
        beside: Tensor | None,
        x: Tensor | None = None,
        h: Tensor | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> tuple[Tensor, list[Tensor]]:
        """From the gradient of y (R, N) of `frozen_forward`: that of x (R, n) plus `beside`, and the factors'.

        Args:
            grad: of y.
            tiles: W^T (n, N), of `frozen_tiles`.
            beside: (R, n) what else flows into the gradient of x.
            x, h, adapters: as in `lora_backward`, which says what is returned for them.
        """
        (M, N), K, ld = grad.shape, tiles.shape[0], adapters.width
        if not self._frozen[grad.dtype]["frozen_takes"](M, K, adapters.given, len(adapters)):
            more = None if beside is None else _filled(beside)
            of_x = self.frozen_backward(_filled(grad), tiles, more)[0][:M]
            return of_x, self.lora_backward(grad, x, h, of_x, adapters) if ld else []
        given, found = _with_gradients(adapters, x)
        of_x, u = grad.new_empty(M, K), self._room.floats("u", M * ld)
        self._frozen[grad.dtype]["frozen_backward"](
            grad.data_ptr(),
            tiles.data_ptr(),
            or_none(beside),
            or_none(x),
            or_none(h),
            of_x.data_ptr(),
            *self._shared_by_all(M, K, N, given, u, ld, (grad.dtype, M, N, K)),
        )
        return of_x, found

    def _shared_by_all(
        self,
        M: int,
        K: int,
        N: int,
        given: Any,
        narrow: Tensor | None,
        ld: int,
        frozen: tuple[torch.dtype, int, int, int] | None = None,
    ) -> tuple[Any, ...]:
        """The arguments that all products with adapters end with.

        Args:
            M, K, N: rows, inputs and outputs.
            given: the adapters', of `Adapters`.
            narrow: (M, L) fp32, x A^T of `lora_forward` or the gradient of it.
            ld: L.
            frozen: dtype, rows, inputs and outputs of the frozen weight's product, where it is one with them.
        """
        count = threads()
        for_all, floats = self._sizes(M, K, N, ld, frozen, count)
        shared, scratch = self._room.floats("shared", for_all), self._room.floats("own", floats * count)
        places = shared.data_ptr(), scratch.data_ptr()
        return M, K, N, given, len(given), or_none(narrow), ld, *places, floats, count

    def _sizes_of(
        self,
        M: int,
        K: int,
        N: int,
        ld: int,
        frozen: tuple[torch.dtype, int, int, int] | None,
        count: int,
    ) -> tuple[int, int]:
        """Floats that all threads share, and floats of each, for `_shared_by_all`'s arguments."""
        floats = self._wanted["lora_floats"](M, K, N, ld)
        if frozen is not None:
            dtype, *shape = frozen
            floats = max(floats, self._frozen[dtype]["frozen_floats"](*shape, count))
        return self._wanted["lora_shared"](M, K, N, ld), floats


def _with_gradients(adapters: Adapters, x: Tensor | None) -> tuple[Any, list[Tensor]]:
    """`Adapters.with_gradients`; without an `x` none are wanted."""
    return (adapters.given, []) if x is None else adapters.with_gradients()


def _filled(x: Tensor) -> Tensor:
    """x (R, n) with zeros behind its rows, a multiple of 16 in all."""
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % LANES))
