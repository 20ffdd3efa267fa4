"""A transformer block, forward and backward by hand.

One node of the graph instead of a dozen: a small step spends as much on bookkeeping as on products, and here nothing
is kept that the gradient does not need. Forward and backward are the composition of parts that have both
(`Joined`, `RowAttention`, `Activation`, norms), in GPT-2's and Llama's order or BERT's.

This file knows the order of the parts; what they hold is handed in.

Shapes: R rows, C hidden size, m width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.activations import Activation
from veneer.engine.gated import Gated
from veneer.engine.linears import Joined
from veneer.engine.norms import Kept as NormKept
from veneer.engine.norms import norm_gradients, normed

__all__ = ["BlockStep"]


class Attention(Protocol):
    """Attention over rows of queries, keys and values side by side."""

    def forward(self, qkv: Tensor, /) -> tuple[Tensor, list[Tensor]]:
        """Its output, and what `backward` wants."""
        ...

    def backward(self, grad: Tensor, kept: Sequence[Tensor], /) -> Tensor:
        """The gradient of `qkv`."""
        ...


@dataclass(frozen=True)
class _Kept:
    """What the backward pass wants of the forward pass: inputs, and what `forward` of each part gave to be kept."""

    norm_1: NormKept
    qkv: tuple[Tensor, Tensor | None]
    attention: list[Tensor]
    out: tuple[Tensor, Tensor | None]
    norm_2: NormKept
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
        norms: of attention and feed-forward, `veneer.engine.norms.is_plain`.
        norm_first: GPT-2's and Llama's order; else BERT's.
    """

    qkv: Joined
    out: Joined
    up: Joined
    down: Joined
    attention: Attention
    activation: Activation | Gated
    norms: tuple[nn.Module, nn.Module]
    norm_first: bool

    def __call__(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """(R, C) -> (R, C), differentiable in x, the norms and the adapters' factors."""
        if not torch.is_grad_enabled():
            return self.alone(x)
        tensors: list[Tensor] = [t for norm in self.norms for t in norm.parameters()]
        for product in self.products:
            tensors += product.factors
        y: Tensor = _Step.apply(x, self, recompute, *tensors)
        return y

    def alone(self, x: Tensor) -> Tensor:
        """The block (R, C) -> (R, C), and nothing that a gradient would want."""
        first, second = self.norms
        a, _ = self.attention.forward(self.qkv.forward(normed(first, x)[0] if self.norm_first else x)[0])
        s, _ = self.out.forward(a, x)
        n = normed(second if self.norm_first else first, s)[0]
        y, _ = self.down.forward(self.up.activated(n, self.activation), s if self.norm_first else n)
        return y if self.norm_first else normed(second, y)[0]

    @property
    def products(self) -> tuple[Joined, Joined, Joined, Joined]:
        """In the order of the forward pass."""
        return self.qkv, self.out, self.up, self.down

    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        """The block, and what `backward` wants."""
        first, second = self.norms
        norm_1: NormKept
        norm_2: NormKept
        if self.norm_first:
            h, norm_1 = normed(first, x)
        else:
            h = x
        states, of_qkv = self.qkv.forward(h)
        a, of_attention = self.attention.forward(states)
        s, of_out = self.out.forward(a, x)
        n, of_middle = normed(second if self.norm_first else first, s)
        u, of_up = self.up.forward(n)
        f = self.activation.forward(u)
        y, of_down = self.down.forward(f, s if self.norm_first else n)
        if self.norm_first:
            norm_2 = of_middle
        else:
            norm_1 = of_middle
            y, norm_2 = normed(second, y)
        return y, _Kept(norm_1, (h, of_qkv), of_attention, (a, of_out), norm_2, (n, of_up), u, (f, of_down))

    def backward(
        self, grad: Tensor, kept: _Kept, *, need_x: bool, need_norms: Sequence[bool]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x and of what `__call__` names after it, from that of the output (R, C)."""
        first, second = self.norms
        need_1, need_2 = need_norms[: _size(first)], need_norms[_size(first) :]
        of_norm_1: list[Tensor | None] = [None] * len(need_1)
        if not self.norm_first:
            grad, of_norm_2 = norm_gradients(second, grad, kept.norm_2, need_2)
        g, of_down = self._back(self.down, grad, kept.down)
        g = self.activation.backward(g, kept.activation)
        g, of_up = self._back(self.up, g, kept.up, beside=None if self.norm_first else grad)
        if self.norm_first:
            g, of_norm_2 = norm_gradients(second, g, kept.norm_2, need_2)
            middle = g.add_(grad)
        else:
            middle, of_norm_1 = norm_gradients(first, g, kept.norm_1, need_1)
        g, of_out = self._back(self.out, middle, kept.out)
        g = self.attention.backward(g, kept.attention)
        gx: Tensor | None = None
        if need_x or (self.norm_first and any(need_1)):
            gx, of_qkv = self._back(self.qkv, g, kept.qkv, beside=None if self.norm_first else middle)
            if self.norm_first:
                gx, of_norm_1 = norm_gradients(first, gx, kept.norm_1, need_1)
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
        need_norms = ctx.needs[3 : 3 + sum(map(_size, ctx.step.norms))]
        gx, grads = ctx.step.backward(grad, kept, need_x=ctx.needs[0], need_norms=need_norms)
        return (gx, None, None, *grads)


def _size(norm: nn.Module) -> int:
    """How many parameters a norm has."""
    return len(list(norm.parameters()))


def _wanted(product: Joined, kept: tuple[Tensor, Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
    """What `Joined.backward` takes: nothing where no factor wants a gradient."""
    return kept if product.trained else (None, None)
