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

from veneer.lora.dora import Dora
from veneer.lora.layers import Layout, LoraLinear, layout_of

__all__ = ["LinearGroup", "Slot"]

Part = tuple[int, int, float]
"""First output, number of outputs and scaling of one adapter in a group."""


Slot = tuple[nn.Module, str]
"""Where a layer hangs: its parent and its name there. Attaching an adapter puts another object into the slot."""


class LinearGroup:
    """Layers that read the same input, as one product.

    The slots are looked into on each call, so attaching, switching, merging or training adapters needs no rebuilding;
    only the weights' place in memory is arranged once.
    """

    def __init__(self, *slots: Slot) -> None:
        self.slots = slots
        self._weight: Tensor | None = None
        self._stamp: tuple[Any, ...] = ()

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
        transposed, weight, bias, sizes = self._arranged([_base_of(layer) for layer in layers])
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
            weight = weight[:, columns] if transposed else weight[columns]
            bias = None if bias is None else bias[columns]
            factors, parts = _cut(factors, parts, columns)
        return _GroupLinear.apply(x, residual, weight, bias, transposed, tuple(parts), *factors)

    def _arranged(self, bases: Sequence[Any]) -> tuple[bool, Tensor, Tensor | None, list[int]]:
        """Whether the layout is Conv1D's; the weights side by side; the biases (M,); each layer's m."""
        transposed = layout_of(bases[0]) is Layout.CONV1D
        axis = 1 if transposed else 0
        sizes = [base.weight.shape[axis] for base in bases]
        if len(bases) == 1:
            return transposed, bases[0].weight, bases[0].bias, sizes
        stamp = tuple((base.weight.data_ptr(), base.weight.dtype) for base in bases)
        if self._weight is None or stamp != self._stamp:
            self._arrange_(bases, axis, sizes)
        assert self._weight is not None
        return transposed, self._weight, _biases([base.bias for base in bases], sizes), sizes

    @torch.inference_mode(False)  # what a prediction arranges, training has to be able to use
    @torch.no_grad()
    def _arrange_(self, bases: Sequence[Any], axis: int, sizes: list[int]) -> None:
        """Lay the weights of several layers into one block, and let each layer's weight be its part of it."""
        block = torch.cat([base.weight for base in bases], dim=axis)
        for base, part in zip(bases, block.split(sizes, dim=axis), strict=True):
            base.weight.data = part
        self._weight = block
        self._stamp = tuple((base.weight.data_ptr(), base.weight.dtype) for base in bases)


def _biases(biases: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """(M,) the layers' biases as they are now: they may be trained while the weights are not; None without any."""
    there = [bias for bias in biases if bias is not None]
    if not there:
        return None
    return torch.cat(
        [there[0].new_zeros(n) if bias is None else bias for bias, n in zip(biases, sizes, strict=True)]
    )


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
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        parts: tuple[Part, ...],
        *factors: Tensor,
    ) -> Tensor:
        W_t = weight if transposed else weight.t()  # (n, M)
        if residual is not None:
            y = torch.addmm(residual, x, W_t)
            if bias is not None:
                y.add_(bias)
        else:
            y = torch.mm(x, W_t) if bias is None else torch.addmm(bias, x, W_t)
        h = A = B = None
        if parts:
            A, B = _side_by_side(factors, parts, W_t.shape[1], x.dtype)
            h = torch.mm(x, A.t())  # (T, R)
            y.addmm_(h, B.t())
        need_x = ctx.needs_input_grad[0]
        need_factors = any(ctx.needs_input_grad[6:])
        ctx.save_for_backward(
            x if need_factors else None,
            h if need_factors else None,
            weight if need_x else None,
            A if need_x else None,
            B,
        )
        ctx.transposed, ctx.parts = transposed, parts
        ctx.ranks = [A_i.shape[0] for A_i in factors[::2]]
        ctx.dtypes = [factor.dtype for factor in factors]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h, weight, A, B = ctx.saved_tensors
        need_x, need_residual = ctx.needs_input_grad[:2]
        need_factors = any(ctx.needs_input_grad[6:])
        g = torch.mm(grad, B) if B is not None and (need_x or need_factors) else None  # (T, R), scaled
        grad_x = None
        if need_x:
            grad_x = torch.mm(grad, weight.t() if ctx.transposed else weight)
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
        return (grad_x, grad if need_residual else None, None, None, None, None, *grads)


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
