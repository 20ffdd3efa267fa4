"""A transformer block, forward and backward by hand.

One node of the graph instead of a dozen: a small step spends as much on bookkeeping as on products, and here nothing
is kept that the gradient does not need. Forward and backward are the composition of parts that have both
(`Joined`, `RowAttention`, `Activation`, PyTorch's layer norm), in GPT-2's order or BERT's.

This file knows the order of the parts; what they hold is handed in.

Shapes: R rows, C hidden size, m width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.activations import Activation
from veneer.engine.linears import Joined
from veneer.engine.row_attention import RowAttention

__all__ = ["BlockStep", "is_plain"]

_aten: Any = torch.ops.aten
_NORMS = 4  # weight and bias of two norms stand first among the tensors that may want gradients


def is_plain(norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm is PyTorch's own, with nobody's hook, in the dtype of x."""
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and norm.weight.dtype == x.dtype
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks)
    )


@dataclass(frozen=True)
class _Kept:
    """What the backward pass wants of the forward pass: inputs, and what `forward` of each part gave to be kept."""

    norm_1: tuple[Tensor, Tensor, Tensor]
    qkv: tuple[Tensor, Tensor | None]
    attention: list[Tensor]
    out: tuple[Tensor, Tensor | None]
    norm_2: tuple[Tensor, Tensor, Tensor]
    up: tuple[Tensor, Tensor | None]
    activation: Tensor
    down: tuple[Tensor, Tensor | None]

    def flat(self) -> list[Tensor | None]:
        """All of it in a row, for `save_for_backward`."""
        fixed = (*self.norm_1, *self.qkv, *self.out, *self.norm_2, *self.up, self.activation, *self.down)
        return [*fixed, *self.attention]

    @classmethod
    def of(cls, flat: Sequence[Any]) -> _Kept:
        """From `flat`."""
        f = tuple(flat)
        return cls(f[0:3], f[3:5], list(f[15:]), f[5:7], f[7:10], f[10:12], f[12], f[13:15])


@dataclass(frozen=True)
class BlockStep:
    """A block at one moment.

    Attributes:
        qkv, out, up, down: its products.
        attention: over the rows of the batch.
        activation: between up and down.
        norms: of attention and feed-forward, `is_plain`.
        norm_first: GPT-2's order; else BERT's.
    """

    qkv: Joined
    out: Joined
    up: Joined
    down: Joined
    attention: RowAttention
    activation: Activation
    norms: tuple[nn.Module, nn.Module]
    norm_first: bool

    def __call__(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """(R, C) -> (R, C), differentiable in x, the norms and the adapters' factors."""
        if not torch.is_grad_enabled():
            return self.alone(x)
        tensors: list[Tensor] = [t for norm in self.norms for t in norm.parameters()]  # weight and bias
        for product in self.products:
            tensors += product.factors
        y: Tensor = _Step.apply(x, self, recompute, *tensors)
        return y

    def alone(self, x: Tensor) -> Tensor:
        """The block (R, C) -> (R, C), and nothing that a gradient would want."""
        first, second = self.norms
        a, _ = self.attention.forward(self.qkv.forward(_normed(first, x)[0] if self.norm_first else x)[0])
        s, _ = self.out.forward(a, x)
        n = _normed(second if self.norm_first else first, s)[0]
        y, _ = self.down.forward(self.up.activated(n, self.activation), s if self.norm_first else n)
        return y if self.norm_first else _normed(second, y)[0]

    @property
    def products(self) -> tuple[Joined, Joined, Joined, Joined]:
        """In the order of the forward pass."""
        return self.qkv, self.out, self.up, self.down

    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        """The block, and what `backward` wants."""
        first, second = self.norms
        norm_1: tuple[Tensor, Tensor, Tensor]
        norm_2: tuple[Tensor, Tensor, Tensor]
        if self.norm_first:
            h, mean, inverse = _normed(first, x)
            norm_1 = x, mean, inverse
        else:
            h = x
        states, of_qkv = self.qkv.forward(h)
        a, of_attention = self.attention.forward(states)
        s, of_out = self.out.forward(a, x)
        n, mean, inverse = _normed(second if self.norm_first else first, s)
        u, of_up = self.up.forward(n)
        f = self.activation.forward(u)
        y, of_down = self.down.forward(f, s if self.norm_first else n)
        if self.norm_first:
            norm_2 = s, mean, inverse
        else:
            norm_1 = s, mean, inverse
            z, mean, inverse = _normed(second, y)
            norm_2, y = (y, mean, inverse), z
        return y, _Kept(norm_1, (h, of_qkv), of_attention, (a, of_out), norm_2, (n, of_up), u, (f, of_down))

    def backward(
        self, grad: Tensor, kept: _Kept, *, need_x: bool, need_norms: Sequence[bool]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x and of what `__call__` names after it, from that of the output (R, C)."""
        first, second = self.norms
        of_norm_1: Sequence[Tensor | None] = (None, None)
        of_norm_2: Sequence[Tensor | None]
        if not self.norm_first:
            grad, *of_norm_2 = _of_norm(second, grad, kept.norm_2, need_norms[2:])
        g, of_down = self._back(self.down, grad, kept.down)
        g = self.activation.backward(g, kept.activation)
        g, of_up = self._back(self.up, g, kept.up, beside=None if self.norm_first else grad)
        if self.norm_first:
            g, *of_norm_2 = _of_norm(second, g, kept.norm_2, need_norms[2:])
            middle = g.add_(grad)
        else:
            middle, *of_norm_1 = _of_norm(first, g, kept.norm_1, need_norms[:2])
        g, of_out = self._back(self.out, middle, kept.out)
        g = self.attention.backward(g, kept.attention)
        gx: Tensor | None = None
        if need_x or (self.norm_first and any(need_norms[:2])):
            gx, of_qkv = self._back(self.qkv, g, kept.qkv, beside=None if self.norm_first else middle)
            if self.norm_first:
                gx, *of_norm_1 = _of_norm(first, gx, kept.norm_1, need_norms[:2])
                gx.add_(middle)
        else:
            _, of_qkv = self.qkv.backward(g, *_wanted(self.qkv, kept.qkv), need_x=False)
        return gx, [*of_norm_1, *of_norm_2, *of_qkv, *of_out, *of_up, *of_down]

    @staticmethod
    def _back(
        product: Joined, grad: Tensor, kept: tuple[Tensor, Tensor | None], *, beside: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients of a product's input and of its factors."""
        grad_x, of_factors = product.backward(grad, *_wanted(product, kept), need_x=True, beside=beside)
        assert grad_x is not None
        return grad_x, of_factors


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: BlockStep, recompute: bool, *_: Tensor) -> Tensor:
        y, kept = step.forward(x)
        ctx.save_for_backward(*([x] if recompute else kept.flat()))
        ctx.step, ctx.recompute, ctx.needs = step, recompute, ctx.needs_input_grad
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        kept = ctx.step.forward(*saved)[1] if ctx.recompute else _Kept.of(saved)
        need_norms = ctx.needs[3 : 3 + _NORMS]
        gx, grads = ctx.step.backward(grad, kept, need_x=ctx.needs[0], need_norms=need_norms)
        return (gx, None, None, *grads)


def _normed(norm: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of each row, and the rows' means and inverse deviations."""
    found: tuple[Tensor, Tensor, Tensor] = _aten.native_layer_norm(
        x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
    )
    return found


def _of_norm(
    norm: Any, grad: Tensor, kept: tuple[Tensor, Tensor, Tensor], need: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of a norm's input, weight and bias."""
    x, mean, inverse = kept
    found: tuple[Tensor, Tensor | None, Tensor | None] = _aten.native_layer_norm_backward(
        grad, x, norm.normalized_shape, mean, inverse, norm.weight, norm.bias, [True, *need]
    )
    return found


def _wanted(product: Joined, kept: tuple[Tensor, Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """What `Joined.backward` takes: nothing where no factor wants a gradient."""
    return kept if product.trained else (None, None)
