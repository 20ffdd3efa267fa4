"""Frozen linear layers with LoRA beside them, run as one: the layers that share an input are one product.

A `LinearGroup` holds the layers (query, key and value; or one alone). Their weights are laid next to each other once,
without a second copy, so that the group costs one product with the base, one with all A's, and one with all B's; the
gradient is written by hand, computes only what is needed below, and keeps the input and the small product alone.

This file knows `veneer.lora`'s layers and plain ones; it knows no model.

Shapes: T tokens, n inputs, m outputs of a layer, M outputs of the group, r rank of a layer's adapter, R of the group's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.frozen import FrozenLinear, let_go
from veneer.engine.joined import Joined, Place, joined_of
from veneer.engine.native import kernels
from veneer.engine.slots import Slot, base_of, bias_of, can_be_joined, layer_in, made_of, pair_of, stamp
from veneer.lora.dora import Dora
from veneer.lora.int8 import Int8Linear, Int8Weight
from veneer.lora.layers import Layout, layout_of

__all__ = ["LinearGroup", "Slot"]

_FACTORS = 3  # where the factors begin among the arguments of the autograd function

_Columns = tuple[int, int] | None
"""First and end of the outputs that are wanted; None: all."""

_Cuts = tuple[tuple[Tensor, slice | None], ...]
"""Factors, and which of their rows are wanted; None: all."""


class LinearGroup:
    """Layers that read the same input, as one product.

    The slots are looked into on each call, so attaching, switching, merging or training adapters needs no rebuilding;
    only the weights' place in memory is arranged once, and a product is handed out again while all that it is made of
    is what it was.

    Attributes:
        slots: where the layers hang.
        copies: in which dtypes copies of the weights are kept in the layouts that the products want.
    """

    def __init__(self, *slots: Slot) -> None:
        self.slots = slots
        self.copies = frozenset({torch.float32, torch.bfloat16})
        self._block: Tensor | None = None
        self._stamp: tuple[Any, ...] = ()
        self._frozen: dict[_Columns, FrozenLinear | Int8Weight] = {}
        self._kept: dict[tuple[torch.dtype, _Columns], tuple[tuple[Any, ...], _Cuts, Joined]] = {}

    @property
    def layers(self) -> list[nn.Module]:
        """What hangs in the slots now."""
        return [layer_in(slot) for slot in self.slots]

    def forget_(self) -> None:
        """Let go of the weights that were arranged; the next call arranges what is there then."""
        self._block, self._stamp, self._frozen, self._kept = None, (), {}, {}

    def ready(self) -> bool:
        """Whether a call can run as a group now.

        It can with at most one active adapter a layer, of low rank (DoRA's is not), no dropout before it, frozen
        weights below it (all of them in int8, or none), and nobody's hook on the layers.
        """
        return can_be_joined(self.layers)

    def __call__(self, x: Tensor, residual: Tensor | None = None, columns: slice | None = None) -> Tensor:
        """(T, n) -> (T, M): the layers' outputs side by side, plus `residual` (T, M) where one is given.

        `columns` picks a part of the outputs, as if the other layers were not there.
        """
        joined = self.joined(x.dtype, columns)
        return _GroupLinear.apply(x, residual, joined, *joined.factors)

    def joined(self, dtype: torch.dtype, columns: slice | None = None) -> Joined:
        """The group's product as it is now, for inputs of this dtype."""
        layers = self.layers
        bases = [base_of(layer) for layer in layers]
        bias = _joined_bias(bases, dtype)
        if bias is not None and columns is not None:
            bias = bias[columns]
        which = dtype, None if columns is None else (columns.start, columns.stop)
        if which in self._kept:
            made, cuts, joined = self._kept[which]
            if made == made_of(layers) and (joined.kernels is None or joined.kernels is kernels()):
                if columns is not None:  # rows of a factor are of this step's graph
                    return replace(joined, bias=bias, factors=_rows_of(cuts))
                return joined if joined.bias is bias else replace(joined, bias=bias)
            self._kept = {}  # what was made of the same weights for others neither stands
        cuts, joined = self._joined_now(layers, bases, bias, dtype, columns)
        if joined.A is None and all(isinstance(factor, nn.Parameter) for factor, _ in cuts):
            now = made_of(layers)
            if now is not None:
                self._kept[which] = now, cuts, joined
        return joined

    def _joined_now(
        self,
        layers: Sequence[nn.Module],
        bases: Sequence[Any],
        bias: Tensor | None,
        dtype: torch.dtype,
        columns: slice | None,
    ) -> tuple[_Cuts, Joined]:
        """`joined`, made anew, and what its factors are."""
        frozen = self._frozen_linear(bases, columns)
        factors: list[Tensor] = []
        parts: list[Place] = []
        start = 0
        for layer, size in zip(layers, _outputs(bases), strict=True):
            pair = pair_of(layer)
            if pair is not None:
                assert not isinstance(pair, Dora)  # `ready` says no
                factors += pair.factors()
                parts.append((start, size, pair.settings.scaling))
            start += size
        cuts: _Cuts = tuple((factor, None) for factor in factors)
        if columns is not None:
            cuts, parts = _cut(factors, parts, columns)
            start = columns.stop - columns.start
        return cuts, joined_of(frozen, bias, _rows_of(cuts), parts, start, dtype)

    def _frozen_linear(self, bases: Sequence[Any], columns: slice | None) -> FrozenLinear | Int8Weight:
        """The weights side by side, or some of their outputs, as the product takes them; made anew when they change."""
        if isinstance(bases[0], Int8Linear):
            return self._frozen_int8(bases, columns)
        transposed = layout_of(bases[0]) is Layout.CONV1D
        if any(base.weight.requires_grad for base in bases):  # it may change without a trace
            weight = torch.cat([base.weight.detach() for base in bases], dim=1 if transposed else 0)
            weight = weight if columns is None else weight[:, columns] if transposed else weight[columns]
            return FrozenLinear(weight, transposed=transposed, keep=False)
        if stamp([base.weight for base in bases]) != self._stamp:
            self._arrange_(bases, 1 if transposed else 0)
        key = None if columns is None else (columns.start, columns.stop)
        if key not in self._frozen:
            assert self._block is not None
            weight = self._block
            if columns is not None:
                weight = weight[:, columns] if transposed else weight[columns]
            self._frozen[key] = FrozenLinear(weight, transposed=transposed, keep=weight.dtype in self.copies)
        return self._frozen[key]

    def _frozen_int8(self, bases: Sequence[Int8Linear], columns: slice | None) -> Int8Weight:
        """The same for weights that are held in int8."""
        if stamp([base.values for base in bases]) != self._stamp:
            self._arrange_int8_(bases)
        whole = self._frozen[None]
        assert isinstance(whole, Int8Weight)
        return whole if columns is None else whole.outputs(columns)

    @torch.inference_mode(False)  # what a prediction arranges, training has to be able to use
    @torch.no_grad()
    def _arrange_int8_(self, bases: Sequence[Int8Linear]) -> None:
        """`_arrange_` for weights in int8, whose outputs are rows in either layout."""
        whole = bases[0].held
        if len(bases) > 1:
            whole = Int8Weight(
                torch.cat([base.values for base in bases]), torch.cat([base.scale for base in bases])
            )
            parts = whole.values.split([base.out_features for base in bases])
            for base, part in zip(bases, parts, strict=True):
                base.values.data = part
        self._block, self._frozen = None, {None: whole}
        self._stamp = stamp([base.values for base in bases])

    @torch.inference_mode(False)  # what a prediction arranges, training has to be able to use
    @torch.no_grad()
    def _arrange_(self, bases: Sequence[Any], axis: int) -> None:
        """Lay the weights of several layers into one block, and let each layer's weight be its part of it."""
        self._block = bases[0].weight.detach()
        if len(bases) > 1:
            sizes = [base.weight.shape[axis] for base in bases]
            self._block = torch.cat([base.weight for base in bases], dim=axis)
            for base, part in zip(bases, self._block.split(sizes, dim=axis), strict=True):
                let_go(base.weight)
                base.weight.data = part
        self._frozen = {}
        self._stamp = stamp([base.weight for base in bases])


def _outputs(bases: Sequence[Any]) -> list[int]:
    """m of each layer."""
    return [layout_of(base).sizes(base)[1] for base in bases]  # type: ignore[union-attr]


def _joined_bias(bases: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    """(M,) the layers' biases as they are now, for an adapter may bring its own; None without any."""
    biases = [bias_of(base) for base in bases]
    there = [bias for bias in biases if bias is not None]
    if not there:
        return None
    if len(biases) > 1:
        if len(there) < len(biases):
            there = [
                there[0].new_zeros(n) if bias is None else bias
                for bias, n in zip(biases, _outputs(bases), strict=True)
            ]
        return torch.cat(there).to(dtype)
    return there[0] if there[0].dtype is dtype else there[0].to(dtype)


def _cut(factors: Sequence[Tensor], parts: Sequence[Place], columns: slice) -> tuple[_Cuts, list[Place]]:
    """The adapters' factors for some of the outputs; adapters outside of them fall away."""
    kept: list[tuple[Tensor, slice | None]] = []
    places: list[Place] = []
    for (start, size, scaling), A, B in zip(parts, factors[::2], factors[1::2], strict=True):
        low, high = max(start, columns.start), min(start + size, columns.stop)
        if low < high:
            kept += [(A, None), (B, None if high - low == size else slice(low - start, high - start))]
            places.append((low - columns.start, high - low, scaling))
    return tuple(kept), places


def _rows_of(cuts: _Cuts) -> tuple[Tensor, ...]:
    """The factors, or the rows of them that are wanted, differentiable."""
    return tuple(factor if rows is None else factor[rows] for factor, rows in cuts)


class _GroupLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, joined: Joined, *factors: Tensor) -> Tensor:
        y, h = joined.forward(x, residual)
        wanted = any(ctx.needs_input_grad[_FACTORS:])
        # The factors are read again: PyTorch refuses if they were changed meanwhile.
        ctx.save_for_backward(x if wanted else None, h if wanted else None, *factors)
        ctx.joined = joined
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *_ = ctx.saved_tensors
        need_x, need_residual = ctx.needs_input_grad[:2]
        grad_x, grads = ctx.joined.backward(grad, x, h, need_x=need_x)
        return (grad_x, grad if need_residual else None, None, *grads)
