"""A transformer block, forward and backward by hand.

One node of the graph instead of a dozen: a small step spends as much on bookkeeping as on products, and here nothing
is kept that the gradient does not need. Forward and backward are the composition of parts that have both
(`Joined`, `RowAttention`, `Tail`, norms), in GPT-2's and Llama's order or BERT's. `BlockStep` computes every row,
or what follows attention for some of them; `ReadStep` one token of each text, as the last block does for whoever reads
no more.

This file knows the order of the parts; what they hold is handed in.

Shapes: R rows (of tokens, or of the nodes of `veneer.engine.beginnings`), B texts, S >= B rows that are computed for
them, C hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.beginnings import Beginnings, of_tokens
from veneer.engine.block_tail import Tail, back_through, normed_or_not, parameters_of, wanted
from veneer.engine.joined import Joined
from veneer.engine.norms import norm_gradients
from veneer.engine.packing import filled_to

__all__ = ["Attention", "BlockStep", "ReadStep", "Reading"]

Kept = list[Tensor | None]
Gradients = tuple[Tensor | None, list[Tensor | None]]
"""Of the input, and of the parameters and factors that the node was called with."""


class Attention(Protocol):
    """Attention over rows of queries, keys and values side by side."""

    def forward(self, qkv: Tensor, /) -> tuple[Tensor, list[Tensor]]:
        """Its output, and what `backward` wants."""
        ...

    def backward(self, grad: Tensor, kept: Sequence[Tensor], /) -> Tensor:
        """The gradient of `qkv`."""
        ...


class Reading(Protocol):
    """Attention of one query a text over rows of keys and values side by side."""

    def forward(self, q: Tensor, kv: Tensor, /) -> tuple[Tensor, list[Tensor]]:
        """Its output (B, C), and what `backward` wants."""
        ...

    def backward(self, grad: Tensor, kept: Sequence[Tensor], /) -> tuple[Tensor, Tensor]:
        """The gradients of `q` and `kv`."""
        ...


@dataclass(frozen=True)
class _Step(ABC):
    """A block at one moment, forward and backward without a graph, and as one node of it.

    Attributes:
        norm: before attention, `veneer.engine.norms.is_plain`; None in BERT's order.
        tail: what stands behind attention.
    """

    norm: nn.Module | None
    tail: Tail

    def __call__(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """(R, C) -> (R, C), or (B, C) of one token a text; differentiable in x, the norms and the adapters' factors.

        It keeps `forward`'s tensors for the backward pass, or with `recompute` its input alone.
        """
        if not torch.is_grad_enabled():
            return self.alone(x)
        parameters = self.parameters
        y: Tensor = _Node.apply(x, self, recompute, len(parameters), *parameters, *self.factors)
        return y

    @property
    @abstractmethod
    def projections(self) -> tuple[Joined, ...]:
        """The products that attention reads."""

    @property
    def parameters(self) -> list[Tensor]:
        """Of the norms, in order."""
        return [*parameters_of(self.norm), *self.tail.parameters]

    @property
    def factors(self) -> list[Tensor]:
        """Of the adapters, in the order of the forward pass."""
        return [factor for product in (*self.projections, *self.tail.products) for factor in product.factors]

    @abstractmethod
    def alone(self, x: Tensor) -> Tensor:
        """The block, and nothing that a gradient would want."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        """The block, and what `backward` wants."""

    @abstractmethod
    def backward(
        self, grad: Tensor, kept: Sequence[Any], *, need_x: bool, need_norms: Sequence[bool]
    ) -> Gradients:
        """The gradients of x, `parameters` and `factors`, from that of the output."""


@dataclass(frozen=True)
class BlockStep(_Step):
    """A block at one moment, (R, C) -> (R, C), or (n, C) where n rows are read.

    Nothing behind attention is computed for the others.

    Attributes:
        norm: before attention, `veneer.engine.norms.is_plain`; None in BERT's order.
        tail: what stands behind attention.
        qkv: queries, keys and values.
        attention: over the rows of the batch.
        read: n; None: all.
        places: (S,) int64, which rows are read, and any behind them, S >= n; None: all.
    """

    qkv: Joined
    attention: Attention
    read: int | None = None
    places: Tensor | None = None

    @property
    def projections(self) -> tuple[Joined, ...]:
        """The product that attention reads."""
        return (self.qkv,)

    def alone(self, x: Tensor) -> Tensor:
        """The block, and nothing that a gradient would want."""
        return self.tail.alone(self._of_read(self._attended(x)), self._of_read(x))[: self.read]

    def _attended(self, x: Tensor) -> Tensor:
        """Attention's output alone: what is behind it needs the memory of queries, keys and values."""
        h, _ = normed_or_not(self.norm, x)
        return self.attention.forward(self.qkv.forward(h)[0])[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        """The block, and what `backward` wants."""
        h, of_norm = normed_or_not(self.norm, x)
        states, of_qkv = self.qkv.forward(h)
        a, of_attention = self.attention.forward(states)
        y, of_tail = self.tail.forward(self._of_read(a), self._of_read(x))
        return y[: self.read], [*of_norm, h, of_qkv, *of_tail, *of_attention]

    def backward(
        self, grad: Tensor, kept: Sequence[Any], *, need_x: bool, need_norms: Sequence[bool]
    ) -> Gradients:
        """The gradients of x, `parameters` and `factors`, from that of the output (R, C)."""
        split, end = len(parameters_of(self.norm)), 5 + Tail.KEPT
        h, of_h = kept[3:5]
        grad = grad if self.places is None else filled_to(grad, len(self.places))
        behind = self.tail.backward(grad, kept[5:end], need_norms[split:])
        g = self.attention.backward(self._of_all(behind.a, h), kept[end:])
        of_norm: list[Tensor | None] = [None] * split
        gx: Tensor | None = None
        if self.norm is None:
            if need_x:
                gx, of_qkv = back_through(self.qkv, g, h, of_h, beside=self._of_all(behind.x, h))
        elif need_x or any(need_norms[:split]):
            gx, of_qkv = back_through(self.qkv, g, h, of_h)
            of_x = self._of_all(behind.x, h)
            gx, of_norm = norm_gradients(self.norm, gx, (kept[0], kept[1], kept[2]), need_norms[:split], of_x)
        if gx is None:
            _, of_qkv = self.qkv.backward(g, *wanted(self.qkv, h, of_h), need_x=False)
        return gx, [*of_norm, *behind.norms, *of_qkv, *behind.factors]

    def _of_read(self, x: Tensor) -> Tensor:
        """Rows (R, C) -> those that are read (S, C)."""
        return x if self.places is None else x.index_select(0, self.places)

    def _of_all(self, grad: Tensor, like: Tensor) -> Tensor:
        """The gradient of what `_of_read` gave -> that of what it was given, with as many rows as `like`."""
        if self.places is None:
            return grad
        return grad.new_zeros(like.shape[0], grad.shape[1]).index_add_(0, self.places, grad)


@dataclass(frozen=True)
class ReadStep(_Step):
    """A block at one moment, of which one token of each text is read, (R, C) -> (B, C).

    Attributes:
        norm, tail: as in `BlockStep`.
        q, kv: queries; keys and values.
        reading: the attention.
        texts: B.
        places: (S,) int64, which row of the input is read for each text, and any rows behind them.
        shared: where rows of the input are nodes: the tree; None: they are the tokens' own.
    """

    q: Joined
    kv: Joined
    reading: Reading
    texts: int
    places: Tensor
    shared: Beginnings | None

    @property
    def projections(self) -> tuple[Joined, ...]:
        """The products that attention reads: queries; keys and values."""
        return self.q, self.kv

    def alone(self, x: Tensor) -> Tensor:
        """The block (R, C) -> (B, C), and nothing that a gradient would want."""
        a = filled_to(self._attended(x), len(self.places))
        return self.tail.alone(a, x.index_select(0, self.places))[: self.texts]

    def _attended(self, x: Tensor) -> Tensor:
        """Attention's output (B, C) alone."""
        h, _ = normed_or_not(self.norm, x)
        q = self.q.forward(h.index_select(0, self.places))[0]
        return self.reading.forward(q[: self.texts], of_tokens(self.kv.forward(h)[0], self.shared))[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Kept]:
        """The block, and what `backward` wants."""
        h, of_norm = normed_or_not(self.norm, x)
        read = h.index_select(0, self.places)
        q, of_q = self.q.forward(read)
        kv, of_kv = self.kv.forward(h)
        a, of_reading = self.reading.forward(q[: self.texts], of_tokens(kv, self.shared))
        y, of_tail = self.tail.forward(filled_to(a, len(self.places)), x.index_select(0, self.places))
        return y[: self.texts], [*of_norm, read, of_q, h, of_kv, *of_tail, *of_reading]

    def backward(
        self, grad: Tensor, kept: Sequence[Any], *, need_x: bool, need_norms: Sequence[bool]
    ) -> Gradients:
        """The gradients of x, `parameters` and `factors`, from that of the output (B, C)."""
        split, end = len(parameters_of(self.norm)), 7 + Tail.KEPT
        behind = self.tail.backward(filled_to(grad, len(self.places)), kept[7:end], need_norms[split:])
        gq, gkv = self.reading.backward(behind.a[: self.texts], kept[end:])
        gq = filled_to(gq, len(self.places))
        read, of_read, h, of_h = kept[3:7]
        gkv = gkv if self.shared is None else self.shared.summed(gkv)
        of_norm: list[Tensor | None] = [None] * split
        if not need_x and not any(need_norms[:split]):
            _, of_kv = self.kv.backward(gkv, *wanted(self.kv, h, of_h), need_x=False)
            _, of_q = self.q.backward(gq, *wanted(self.q, read, of_read), need_x=False)
            return None, [*of_norm, *behind.norms, *of_q, *of_kv, *behind.factors]
        gx, of_kv = back_through(self.kv, gkv, h, of_h)
        g, of_q = back_through(self.q, gq, read, of_read, beside=behind.x if self.norm is None else None)
        gx.index_add_(0, self.places, g)
        if self.norm is not None:
            gx, of_norm = norm_gradients(self.norm, gx, (kept[0], kept[1], kept[2]), need_norms[:split])
            gx.index_add_(0, self.places, behind.x)
        return gx, [*of_norm, *behind.norms, *of_q, *of_kv, *behind.factors]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: _Step, recompute: bool, of_norms: int, *own: Tensor) -> Tensor:
        y, kept = step.forward(x)
        saved = [x] if recompute else kept
        # Norms and factors are read again: PyTorch refuses if they were changed meanwhile.
        ctx.save_for_backward(*saved, *own)
        ctx.step, ctx.recompute, ctx.saved = step, recompute, len(saved)
        ctx.need_x, ctx.need_norms = ctx.needs_input_grad[0], ctx.needs_input_grad[4 : 4 + of_norms]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors[: ctx.saved]
        kept = ctx.step.forward(*saved)[1] if ctx.recompute else saved
        gx, grads = ctx.step.backward(grad, kept, need_x=ctx.need_x, need_norms=ctx.need_norms)
        return (gx, None, None, None, *grads)
