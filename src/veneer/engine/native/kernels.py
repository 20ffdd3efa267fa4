"""The compiled kernels, called with tensors.

Every tensor is on the CPU, in fp32 or bf16 and contiguous; `fits` says whether one is. Sums are in fp32 in both.

This file knows tensors and the functions of `source/`; it knows no layer and no model.

Shapes: T tokens, R >= T rows, B texts, H heads, K key-value heads, D head size, n inputs, N outputs, r rank, L the
parts' ranks, each rounded up to a multiple of 16.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from veneer.engine.native.signatures import (
    LANES,
    NO_ADAPTERS,
    TYPES,
    TYPES_OF_FROZEN,
    TYPES_OF_ROOM,
    Adapters,
    Texts,
    texts_given,
)

__all__ = ["Kernels", "fits"]

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_FROZEN_STEP = {torch.float32: LANES, torch.bfloat16: 32}  # of a weight's inputs and outputs
_SHAPES = 4096  # of products, whose sizes of scratch are remembered


def fits(x: Tensor) -> bool:
    """Whether the kernels take a tensor."""
    return x.device.type == "cpu" and x.dtype in _SUFFIX and x.is_contiguous()


class Kernels:
    """A loaded library's functions for tensors.

    Args:
        library: of `veneer.engine.native.build.built`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        for name, types in TYPES.items():
            for dtype, suffix in _SUFFIX.items():
                self._functions[name, dtype] = _function(library, f"{name}_{suffix}", types)
        self._wanted = {name: _function(library, name, types) for name, types in TYPES_OF_ROOM.items()}
        self._frozen: dict[torch.dtype, dict[str, Any]] = {}
        for dtype, suffix in _SUFFIX.items():
            possible = getattr(library, f"frozen_possible_{suffix}", None)
            if possible is not None and possible():
                self._frozen[dtype] = {
                    name: _function(library, f"{name}_{suffix}", types)
                    for name, types in TYPES_OF_FROZEN.items()
                }
        self._room = _Room()
        self._sizes = lru_cache(maxsize=_SHAPES)(self._sizes_of)

    def value(self, name: str, x: Tensor) -> Tensor:
        """An activation of x, of any shape: "gelu", "gelu_tanh", "silu"."""
        y = torch.empty_like(x)
        self._functions[f"{name}_value", x.dtype](x.data_ptr(), y.data_ptr(), x.numel(), _threads())
        return y

    def gradient(self, name: str, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of an activation's input x from that of its output, both of one shape."""
        y = torch.empty_like(x)
        function = self._functions[f"{name}_gradient", x.dtype]
        function(grad.data_ptr(), x.data_ptr(), y.data_ptr(), x.numel(), _threads())
        return y

    def norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        *,
        centred: bool,
        added: float = 0.0,
        twice: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(R, C) -> x / sqrt(mean(x^2) + eps) (weight + added) + bias, and (R, 1) fp32 means and inverse roots.

        Args:
            x: rows.
            weight, bias: (C,) of the dtype of x; no bias: none is added.
            eps: added to the mean square.
            centred: whether the row's mean is taken away first, as a layer norm does; else there are no means.
            added: to the weight.
            twice: whether the normed row is rounded to the dtype before it is multiplied, too.
        """
        R, C = x.shape
        y, inverse = torch.empty_like(x), torch.empty(R, 1)
        mean = torch.empty(R, 1) if centred else None
        self._functions["norm", x.dtype](
            x.data_ptr(),
            weight.data_ptr(),
            _or_none(bias),
            added,
            eps,
            twice,
            y.data_ptr(),
            _or_none(mean),
            inverse.data_ptr(),
            R,
            C,
            _threads(),
        )
        return y, mean, inverse

    def norm_gradient(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor | None,
        inverse: Tensor,
        beside: Tensor | None,
        *,
        added: float = 0.0,
    ) -> Tensor:
        """The gradient of `norm`'s x (R, C) from that of its output, plus `beside` (R, C), rounded once.

        Args:
            grad: of the output.
            x, weight, added: as in `norm`.
            mean, inverse: what it gave.
            beside: what else flows into the gradient of x.
        """
        gx = torch.empty_like(x)
        self._functions["norm_gradient", x.dtype](
            grad.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            added,
            _or_none(mean),
            inverse.data_ptr(),
            _or_none(beside),
            gx.data_ptr(),
            *x.shape,
            _threads(),
        )
        return gx

    def attend(self, qkv: Tensor, texts: Texts) -> Tensor:
        """(R, (H + 2 K) D) queries, keys and values side by side -> (R, H D); rows behind the queries are zero."""
        q, k, v = _places_of(qkv, texts)
        return self._attend(q, k, v, qkv.shape[1], qkv.shape[1], texts, qkv)

    def attend_gradient(self, qkv: Tensor, grad: Tensor, texts: Texts) -> Tensor:
        """The gradient of `qkv`, from that of `attend`'s output (R, H D); rows behind the texts are zero."""
        out = torch.empty_like(qkv)
        places, widths = _places_of(qkv, texts), (qkv.shape[1], qkv.shape[1])
        self._attend_gradient(places, widths, grad, _places_of(out, texts), out, texts)
        return out

    def read(self, q: Tensor, kv: Tensor, texts: Texts) -> Tensor:
        """q (B, H D), one query a text, and kv (R, 2 K D) keys and values side by side -> (B, H D)."""
        k, v = _halves_of(kv)
        return self._attend(q.data_ptr(), k, v, q.shape[1], kv.shape[1], texts, q)

    def read_gradient(self, q: Tensor, kv: Tensor, grad: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """The gradients of `q` and `kv` from that of `read`'s output (B, H D)."""
        of_q, of_kv = torch.empty_like(q), torch.empty_like(kv)
        self._attend_gradient(
            (q.data_ptr(), *_halves_of(kv)),
            (q.shape[1], kv.shape[1]),
            grad,
            (of_q.data_ptr(), *_halves_of(of_kv)),
            of_kv,
            texts,
        )
        return of_q, of_kv

    def _attend(self, q: int, k: int, v: int, ldq: int, ldk: int, texts: Texts, like: Tensor) -> Tensor:
        """Attention of what begins at these places; the output has as many rows as `like`."""
        width = texts.heads * texts.size
        out = like.new_empty(like.shape[0], width)
        scratch, floats, threads = self._scratch(texts, like.dtype)
        self._functions["attend", like.dtype](
            ctypes.byref(texts_given(q, k, v, ldq, ldk, texts)),
            out.data_ptr(),
            width,
            like.shape[0],
            scratch.data_ptr(),
            floats,
            threads,
        )
        return out

    def _attend_gradient(
        self,
        places: tuple[int, int, int],
        widths: tuple[int, int],
        grad: Tensor,
        gradients: tuple[int, int, int],
        rows: Tensor,
        texts: Texts,
    ) -> None:
        """The gradients of what begins at these places into what begins at those; `rows` holds those of the keys."""
        scratch, floats, threads = self._scratch(texts, grad.dtype)
        self._functions["attend_gradient", grad.dtype](
            ctypes.byref(texts_given(*places, *widths, texts)),
            grad.data_ptr(),
            texts.heads * texts.size,
            *gradients,
            rows.data_ptr(),
            rows.shape[0],
            scratch.data_ptr(),
            floats,
            threads,
        )

    def _scratch(self, texts: Texts, dtype: torch.dtype) -> tuple[Tensor, int, int]:
        """Room for all threads, floats of each, and how many threads."""
        wanted, threads = self._functions["attention_scratch", dtype], _threads()
        floats = wanted(texts.longest_q, texts.longest_k, texts.size)
        return self._room.floats("own", floats * threads), floats, threads

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
            _or_none(x),
            _or_none(h),
            _or_none(of_x),
            *self._shared_by_all(M, K, N, given, u, ld),
        )
        return found

    def attends_in_tiles(self, dtype: torch.dtype, size: int) -> bool:
        """Whether the matrix unit computes attention of this dtype, with heads of so many numbers."""
        return dtype is torch.bfloat16 and dtype in self._frozen and not size % _FROZEN_STEP[dtype]

    def takes_frozen(self, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
        """Whether there are products with a frozen weight of this dtype and shape."""
        step = _FROZEN_STEP[dtype]
        return dtype in self._frozen and not outputs % step and not inputs % step

    def frozen_tiles(self, weight: Tensor, *, transposed: bool) -> Tensor:
        """A contiguous weight (N, n), or (n, N) if `transposed` -> (N, n), laid out as the products want it."""
        N, K = reversed(weight.shape) if transposed else weight.shape
        tiles = weight.new_empty(N, K)
        self._frozen[weight.dtype]["frozen_tiles"](
            weight.data_ptr(), transposed, N, K, tiles.data_ptr(), _threads()
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
            _or_none(bias),
            _or_none(residual),
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
            _or_none(beside),
            _or_none(x),
            _or_none(h),
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
        threads = _threads()
        for_all, floats = self._sizes(M, K, N, ld, frozen, threads)
        shared, scratch = self._room.floats("shared", for_all), self._room.floats("own", floats * threads)
        places = shared.data_ptr(), scratch.data_ptr()
        return M, K, N, given, len(given), _or_none(narrow), ld, *places, floats, threads

    def _sizes_of(
        self,
        M: int,
        K: int,
        N: int,
        ld: int,
        frozen: tuple[torch.dtype, int, int, int] | None,
        threads: int,
    ) -> tuple[int, int]:
        """Floats that all threads share, and floats of each, for `_shared_by_all`'s arguments."""
        floats = self._wanted["lora_floats"](M, K, N, ld)
        if frozen is not None:
            dtype, *shape = frozen
            floats = max(floats, self._frozen[dtype]["frozen_floats"](*shape, threads))
        return self._wanted["lora_shared"](M, K, N, ld), floats


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


def _function(library: ctypes.CDLL, name: str, types: tuple[Any, list[Any]]) -> Any:
    """A function of the library with the types of its result and arguments."""
    function = getattr(library, name)
    function.restype, function.argtypes = types
    return function


def _with_gradients(adapters: Adapters, x: Tensor | None) -> tuple[Any, list[Tensor]]:
    """`Adapters.with_gradients`; without an `x` none are wanted."""
    return (adapters.given, []) if x is None else adapters.with_gradients()


def _filled(x: Tensor) -> Tensor:
    """x (R, n) with zeros behind its rows, a multiple of 16 in all."""
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % LANES))


def _threads() -> int:
    return torch.get_num_threads()


def _or_none(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _places_of(qkv: Tensor, texts: Texts) -> tuple[int, int, int]:
    """Where queries, keys and values begin in memory."""
    place, head = qkv.data_ptr(), texts.size * qkv.element_size()
    return place, place + texts.heads * head, place + (texts.heads + texts.kv_heads) * head


def _halves_of(kv: Tensor) -> tuple[int, int]:
    """Where keys and values begin in memory."""
    return kv.data_ptr(), kv.data_ptr() + kv.shape[1] // 2 * kv.element_size()
