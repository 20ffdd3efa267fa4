"""What happens to queries and keys between their product and the attention: norms of each head, and rotary positions.

Forward and backward by hand, on rows in which queries, keys and values stand side by side, or a part of them.

This file knows rows, norms and rotary modules; it knows no model.

Shapes: R rows, H heads, K key-value heads, D head size, W = (H + 2 K) D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veneer.engine.by_hand import node_of_kept
from veneer.engine.compiled_attention import CompiledRead, CompiledRows
from veneer.engine.linears import Slot
from veneer.engine.norms import norm_gradients, normed
from veneer.engine.packing import Layout
from veneer.engine.rotary import Rotary, Turn
from veneer.engine.row_attention import ReadAttention, RowAttention

__all__ = ["Turned", "TurnedAttention", "TurnedReading", "Turning"]


@dataclass(frozen=True)
class Turned:
    """The queries and keys of a block.

    Attributes:
        rotary: the model's.
        heads, kv_heads, size: H, K, D.
        norms: where the norms of a query's and of a key's head hang (Qwen3), or None.
    """

    rotary: Rotary
    heads: int
    kv_heads: int
    size: int
    norms: tuple[Slot, Slot] | None = None

    def ready(self) -> bool:
        """Whether this call can run in this form: the norms of heads are frozen, and nobody's hook is on them."""
        hooked = self.rotary.module._forward_hooks or self.rotary.module._forward_pre_hooks
        for norm in self._norms or ():
            hooked = hooked or norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks
            if torch.is_grad_enabled() and any(p.requires_grad for p in norm.parameters()):
                return False
        return not hooked

    @property
    def _norms(self) -> tuple[nn.Module, nn.Module] | None:
        if self.norms is None:
            return None
        (of_q, q), (of_k, k) = self.norms
        return getattr(of_q, q), getattr(of_k, k)

    def attention(self, inner: RowAttention | CompiledRows, like: Tensor) -> TurnedAttention:
        """`inner` with what comes before it, for rows (R, ...) like these."""
        turning = self._turning(self.rotary.turn(inner.layout, like), self.heads, self.kv_heads)
        return TurnedAttention(inner, turning)

    def qkv(self, qkv: Tensor, layout: Layout) -> Tensor:
        """(R, W) -> the same, differentiable."""
        turning = self._turning(self.rotary.turn(layout, qkv), self.heads, self.kv_heads)
        return node_of_kept(qkv, turning)

    def queries(self, q: Tensor, layout: Layout, rows: Tensor, of: Tensor) -> Tensor:
        """(S, H D) the queries of some `rows` (S,) -> the same, differentiable; `of` (R, ...) is like all rows."""
        return node_of_kept(q, self._turning(self.rotary.turn(layout, of).at(rows), self.heads, 0))

    def keys(self, kv: Tensor, layout: Layout) -> Tensor:
        """(R, 2 K D) keys and values -> the same, differentiable."""
        return node_of_kept(kv, self._turning(self.rotary.turn(layout, kv), 0, self.kv_heads))

    def reading(self, inner: ReadAttention | CompiledRead, read: Tensor, like: Tensor) -> TurnedReading:
        """`inner` with what comes before it, for the tokens `read` (B,) of rows (R, ...) like these."""
        turn = self.rotary.turn(inner.layout, like)
        of_q, of_kv = self._turning(turn.at(read), self.heads, 0), self._turning(turn, 0, self.kv_heads)
        return TurnedReading(inner, of_q, of_kv)

    def _turning(self, turn: Turn, queries: int, keys: int) -> Turning:
        return Turning(turn, queries, keys, self.size, self._norms)


@dataclass(frozen=True)
class Turning:
    """The same at one moment, for rows that begin with so many heads of queries, and then of keys.

    Attributes:
        turn: the angles of the rows.
        queries, keys: heads of each; what stands behind them stays as it is.
        size: D.
        norms: of a query's and of a key's head.
    """

    turn: Turn
    queries: int
    keys: int
    size: int
    norms: tuple[nn.Module, nn.Module] | None

    def forward(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(R, W) -> a new (R, W), and what `backward` wants."""
        heads = rows.unflatten(1, (-1, self.size))  # (R, N, D)
        turned = self.queries + self.keys
        out = torch.empty_like(heads)
        kept: list[Tensor] = []
        before = heads[:, :turned]
        if self.norms is not None:
            parts = []
            for norm, part in self._parts(before):
                y, (_, _, inverse) = normed(norm, part)
                parts.append(y)
                kept.append(inverse)
            before, kept = torch.cat(parts, dim=1), [rows, *kept]
        self.turn.forward(before, out[:, :turned])
        out[:, turned:] = heads[:, turned:]
        return out.flatten(1), kept

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the input of `forward` (R, W), a new tensor."""
        heads = grad.unflatten(1, (-1, self.size))
        turned = self.queries + self.keys
        out = torch.empty_like(heads)
        back = self.turn.backward(heads[:, :turned], out[:, :turned])
        if self.norms is not None:
            rows, *inverses = kept
            before = self._parts(rows.unflatten(1, (-1, self.size))[:, :turned])
            found = zip(before, self._parts(back), inverses, strict=True)
            back.copy_(
                torch.cat([norm_gradients(n, g, (x, None, i), (False,))[0] for (n, x), (_, g), i in found], 1)
            )
        out[:, turned:] = heads[:, turned:]
        return out.flatten(1)

    def _parts(self, heads: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """The heads of queries and of keys with their norms."""
        assert self.norms is not None
        parts = zip(self.norms, heads.split([self.queries, self.keys], dim=1), strict=True)
        return [(norm, part) for norm, part in parts if part.shape[1]]


@dataclass(frozen=True)
class TurnedAttention:
    """Attention over rows whose queries and keys are turned first; stands where `RowAttention` stands."""

    inner: RowAttention | CompiledRows
    turning: Turning

    def forward(self, qkv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(R, W) -> (R, H D), and what `backward` wants."""
        turned, before = self.turning.forward(qkv)
        out, kept = self.inner.forward(turned)
        return out, [*kept, *before]

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the output (R, H D) -> that of the input (R, W)."""
        of_turning = 0 if self.turning.norms is None else 3
        inner, before = kept[: len(kept) - of_turning], kept[len(kept) - of_turning :]
        return self.turning.backward(self.inner.backward(grad, inner), before)


@dataclass(frozen=True)
class TurnedReading:
    """Attention of one token of each text, turned first as its keys are; stands where `ReadAttention` stands."""

    inner: ReadAttention | CompiledRead
    of_q: Turning
    of_kv: Turning

    def forward(self, q: Tensor, kv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """q (B, H D), kv (R, 2 K D) -> (B, H D), and what `backward` wants."""
        q, before_q = self.of_q.forward(q)
        kv, before_kv = self.of_kv.forward(kv)
        out, kept = self.inner.forward(q, kv)
        return out, [*before_q, *before_kv, *kept]

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient of the output (B, H D) -> those of q and kv."""
        n = 0 if self.of_q.norms is None else 2
        gq, gkv = self.inner.backward(grad, kept[2 * n :])
        return self.of_q.backward(gq, kept[:n]), self.of_kv.backward(gkv, kept[n : 2 * n])
