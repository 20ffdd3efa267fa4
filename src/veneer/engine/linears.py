"""Frozen linear layers with LoRA beside them, run as one: the layers that share an input are one product.

A `LinearGroup` holds the layers (query, key and value; or one alone). Their weights are laid next to each other once,
without a second copy, so that the group costs one product with the base, one with all A's, and one with all B's; the
gradient is written by hand, computes only what is needed below, and keeps the input and the small product alone.

This file knows `veneer.lora`'s layers and plain ones; it knows no model.

Shapes: T tokens, n inputs, m outputs of a layer, M outputs of the group, r rank of a layer's adapter, R of the group's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.frozen import FrozenLinear
from veneer.lora.dora import Dora
from veneer.lora.layers import Layout, LoraLinear, layout_of

__all__ = ["LinearGroup", "Slot"]

Part = tuple[int, int, float]
"""First output, number of outputs and scaling of one adapter in a group."""

_FACTORS = 5  # where the factors begin among the arguments of the autograd function


Slot = tuple[nn.Module, str]
"""Where a layer hangs: its parent and its name there. Attaching an adapter puts another object into the slot."""


class LinearGroup:
    """Layers that read the same input, as one product.

    The slots are looked into on each call, so attaching, switching, merging or training adapters needs no rebuilding;
    only the weights' place in memory is arranged once.
    """

    def __init__(self, *slots: Slot) -> None:
        self.slots = slots
        self._block: Tensor | None = None
        self._stamp: tuple[Any, ...] = ()
        self._frozen: dict[tuple[int, int] | None, FrozenLinear] = {}

    @property
    def layers(self) -> list[nn.Module]:
        """What hangs in the slots now."""
        return [getattr(parent, name) for parent, name in self.slots]

    def ready(self) -> bool:
        """Whether a call can run as a group now.

        It can with at most one active adapter a layer, of low rank (DoRA's is not), no dropout before it, frozen
        weights below it, and nobody's hook on the layers.
        """
        for layer in self.layers:
            base = _base_of(layer)
            if layout_of(base) not in (Layout.LINEAR, Layout.CONV1D) or any(_hooks(m) for m in (layer, base)):
                return False
            if torch.is_grad_enabled() and any(p.requires_grad for p in base.parameters()):
                return False
            if isinstance(layer, LoraLinear):
                if len(layer.active) > 1 or any(isinstance(layer.pair(name), Dora) for name in layer.active):
                    return False
                if layer.training and any(layer.pair(name).settings.dropout > 0 for name in layer.active):
                    return False
        return True

    def __call__(self, x: Tensor, residual: Tensor | None = None, columns: slice | None = None) -> Tensor:
        """(T, n) -> (T, M): the layers' outputs side by side, plus `residual` (T, M) where one is given.

        `columns` picks a part of the outputs, as if the other layers were not there.
        """
        layers = self.layers
        bases = [_base_of(layer) for layer in layers]
        sizes = [layout_of(base).sizes(base)[1] for base in bases]  # type: ignore[union-attr]
        bias = _biases([base.bias for base in bases], sizes, x.dtype)
        factors: list[Tensor] = []
        parts: list[Part] = []
        start = 0
        for layer, size in zip(layers, sizes, strict=True):
            if isinstance(layer, LoraLinear) and layer.active:
                pair = layer.pair(layer.active[0])
                assert not isinstance(pair, Dora)  # `ready` says no
                factors += pair.factors()
                parts.append((start, size, pair.settings.scaling))
            start += size
        if columns is not None:
            bias = None if bias is None else bias[columns]
            factors, parts = _cut(factors, parts, columns)
        frozen = self._frozen_linear(bases, columns)
        return _GroupLinear.apply(x, residual, bias, frozen, tuple(parts), *factors)

    def _frozen_linear(self, bases: Sequence[Any], columns: slice | None) -> FrozenLinear:
        """The weights side by side, or some of their outputs, as the product takes them; made anew when they change."""
        transposed = layout_of(bases[0]) is Layout.CONV1D
        if _stamp(bases) != self._stamp:
            self._arrange_(bases, 1 if transposed else 0)
        key = None if columns is None else (columns.start, columns.stop)
        if key not in self._frozen:
            assert self._block is not None
            weight = self._block
            if columns is not None:
                weight = weight[:, columns] if transposed else weight[columns]
            self._frozen[key] = FrozenLinear(weight, transposed=transposed)
        return self._frozen[key]

    @torch.inference_mode(False)  # what a prediction arranges, training has to be able to use
    @torch.no_grad()
    def _arrange_(self, bases: Sequence[Any], axis: int) -> None:
        """Lay the weights of several layers into one block, and let each layer's weight be its part of it."""
        self._block = bases[0].weight.detach()
        if len(bases) > 1:
            sizes = [base.weight.shape[axis] for base in bases]
            self._block = torch.cat([base.weight for base in bases], dim=axis)
            for base, part in zip(bases, self._block.split(sizes, dim=axis), strict=True):
                base.weight.data = part
        self._frozen = {}
        self._stamp = _stamp(bases)


def _stamp(bases: Sequence[Any]) -> tuple[Any, ...]:
    """What changes when a weight does: its place, its dtype, or the count of its changes in place."""
    weights = [base.weight for base in bases]
    return tuple((w.data_ptr(), w.dtype, 0 if w.is_inference() else w._version) for w in weights)


def _biases(biases: Sequence[Tensor | None], sizes: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """(M,) the layers' biases as they are now, for an adapter may bring its own; None without any."""
    there = [bias for bias in biases if bias is not None]
    if not there:
        return None
    if len(biases) == 1:
        return there[0].to(dtype)
    return torch.cat(
        [there[0].new_zeros(n) if bias is None else bias for bias, n in zip(biases, sizes, strict=True)]
    ).to(dtype)


def _base_of(layer: nn.Module) -> Any:
    return layer.base_layer if isinstance(layer, LoraLinear) else layer


def _hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _cut(factors: Sequence[Tensor], parts: Sequence[Part], columns: slice) -> tuple[list[Tensor], list[Part]]:
    """The adapters' factors for some of the outputs; adapters outside of them fall away."""
    kept: list[Tensor] = []
    places: list[Part] = []
    for (start, size, scaling), A, B in zip(parts, factors[::2], factors[1::2], strict=True):
        low, high = max(start, columns.start), min(start + size, columns.stop)
        if low < high:
            kept += [A, B[low - start : high - start]]
            places.append((low - columns.start, high - low, scaling))
    return kept, places


class _GroupLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        bias: Tensor | None,
        frozen: FrozenLinear,
        parts: tuple[Part, ...],
        *factors: Tensor,
    ) -> Tensor:
        y = frozen.product(x, bias, residual)
        h = A = B = None
        if parts:
            A, B = _side_by_side(factors, parts, y.shape[1], x.dtype)
            h = torch.mm(x, A.t())  # (T, R)
            y.addmm_(h, B.t())
        need_x = ctx.needs_input_grad[0]
        need_factors = any(ctx.needs_input_grad[_FACTORS:])
        ctx.save_for_backward(
            x if need_factors else None, h if need_factors else None, A if need_x else None, B
        )
        ctx.frozen, ctx.parts = frozen, parts
        ctx.ranks = [A_i.shape[0] for A_i in factors[::2]]
        ctx.dtypes = [factor.dtype for factor in factors]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h, A, B = ctx.saved_tensors
        need_x, need_residual = ctx.needs_input_grad[:2]
        need_factors = any(ctx.needs_input_grad[_FACTORS:])
        g = torch.mm(grad, B) if B is not None and (need_x or need_factors) else None  # (T, R), scaled
        grad_x = None
        if need_x:
            grad_x = ctx.frozen.input_gradient(grad)
            if g is not None:
                grad_x.addmm_(g, A)
        grads: list[Tensor | None] = [None] * len(ctx.dtypes)
        if need_factors:
            assert g is not None  # factors come with their B
            grad_A = torch.mm(g.t(), x)  # (R, n)
            at = 0
            for i, ((start, size, scaling), r) in enumerate(zip(ctx.parts, ctx.ranks, strict=True)):
                grads[2 * i] = grad_A[at : at + r].to(ctx.dtypes[2 * i])
                part = torch.mm(grad[:, start : start + size].t(), h[:, at : at + r])  # (m, r)
                grads[2 * i + 1] = part.to(ctx.dtypes[2 * i + 1]).mul_(scaling)
                at += r
        return (grad_x, grad if need_residual else None, None, None, None, *grads)


def _side_by_side(
    factors: Sequence[Tensor], parts: Sequence[Part], outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """All A's under each other (R, n), and all scaled B's on the diagonal of (M, R), in `dtype`."""
    if len(parts) == 1 and parts[0][1] == outputs:
        return factors[0].to(dtype), (factors[1] * parts[0][2]).to(dtype)
    A = torch.cat([A.to(dtype) for A in factors[::2]])
    B = torch.zeros(outputs, A.shape[0], dtype=dtype, device=A.device)
    at = 0
    for (start, size, scaling), B_i in zip(parts, factors[1::2], strict=True):
        r = B_i.shape[1]
        B[start : start + size, at : at + r] = B_i * scaling
        at += r
    return A, B
