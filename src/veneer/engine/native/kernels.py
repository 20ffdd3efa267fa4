"""The compiled kernels, called with tensors.

Every tensor is on the CPU, in fp32 or bf16 and contiguous; `fits` says whether one is. Sums are in fp32 in both.

This file knows tensors and the functions of `source/`; it knows no layer and no model.

Shapes: T tokens, R >= T rows, B texts, H heads, K key-value heads, D head size, n inputs, N outputs, r rank, L the
parts' ranks, each rounded up to a multiple of 16.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from veneer.engine.native.library import SUFFIX, or_none, threads
from veneer.engine.native.products import FROZEN_STEP, Products
from veneer.engine.native.signatures import Texts, texts_given

__all__ = ["Kernels", "fits"]


def fits(x: Tensor) -> bool:
    """Whether the kernels take a tensor."""
    return x.device.type == "cpu" and x.dtype in SUFFIX and x.is_contiguous()


class Kernels(Products):
    """Activations, norms and attention, beside the products.

    Args:
        library: of `veneer.engine.native.build.built`.
    """

    def value(self, name: str, x: Tensor, *, in_place: bool = False) -> Tensor:
        """An activation of x, of any shape: "gelu", "gelu_tanh", "silu"; in a new tensor, or in x itself."""
        y = x if in_place else torch.empty_like(x)
        self._functions[f"{name}_value", x.dtype](x.data_ptr(), y.data_ptr(), x.numel(), threads())
        return y

    def gradient(self, name: str, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of an activation's input x from that of its output, both of one shape."""
        y = torch.empty_like(x)
        function = self._functions[f"{name}_gradient", x.dtype]
        function(grad.data_ptr(), x.data_ptr(), y.data_ptr(), x.numel(), threads())
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
            or_none(bias),
            added,
            eps,
            twice,
            y.data_ptr(),
            or_none(mean),
            inverse.data_ptr(),
            R,
            C,
            threads(),
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
            or_none(mean),
            inverse.data_ptr(),
            or_none(beside),
            gx.data_ptr(),
            *x.shape,
            threads(),
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
        scratch, floats, count = self._scratch(texts, like.dtype)
        self._functions["attend", like.dtype](
            ctypes.byref(texts_given(q, k, v, ldq, ldk, texts)),
            out.data_ptr(),
            width,
            like.shape[0],
            scratch.data_ptr(),
            floats,
            count,
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
        scratch, floats, count = self._scratch(texts, grad.dtype)
        self._functions["attend_gradient", grad.dtype](
            ctypes.byref(texts_given(*places, *widths, texts)),
            grad.data_ptr(),
            texts.heads * texts.size,
            *gradients,
            rows.data_ptr(),
            rows.shape[0],
            scratch.data_ptr(),
            floats,
            count,
        )

    def _scratch(self, texts: Texts, dtype: torch.dtype) -> tuple[Tensor, int, int]:
        """Room for all threads, floats of each, and how many threads."""
        wanted, count = self._functions["attention_scratch", dtype], threads()
        floats = wanted(texts.longest_q, texts.longest_k, texts.size)
        return self._room.floats("own", floats * count), floats, count

    def attends_in_tiles(self, dtype: torch.dtype, size: int) -> bool:
        """Whether the matrix unit computes attention of this dtype, with heads of so many numbers."""
        return dtype is torch.bfloat16 and dtype in self._frozen and not size % FROZEN_STEP[dtype]


def _places_of(qkv: Tensor, texts: Texts) -> tuple[int, int, int]:
    """Where queries, keys and values begin in memory."""
    place, head = qkv.data_ptr(), texts.size * qkv.element_size()
    return place, place + texts.heads * head, place + (texts.heads + texts.kv_heads) * head


def _halves_of(kv: Tensor) -> tuple[int, int]:
    """Where keys and values begin in memory."""
    return kv.data_ptr(), kv.data_ptr() + kv.shape[1] // 2 * kv.element_size()
