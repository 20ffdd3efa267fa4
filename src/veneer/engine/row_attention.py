"""Attention straight from a packed row of queries, keys and values side by side, for the engine's own blocks.

The same function as `veneer.engine.attention`, for the commonest case: each token sees all of its text, or what stands
before it, as far as a window goes. The row is laid out for the batched products in one copy, and back in one, each with
an index that is made once for a batch; texts share bins of a few lengths (see `veneer.engine.bins`), and query heads
that share a key-value head are one product with it.

This file knows tensors and layouts, no model.

Shapes: T tokens, R >= T rows of the batch, B texts, H heads, K key-value heads (H is a multiple), D head size, C = H D,
W = (H + 2 K) D, n bins of a kind, L places of each, P places in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.attention import KEPT_TOKENS, AttentionPattern, packed_attention
from veneer.engine.bins import Bins, bins_of, one_text_each
from veneer.engine.by_hand import node_of_kept
from veneer.engine.packing import Layout, filled_to

__all__ = ["ReadAttention", "RowAttention", "attend_read", "attend_rows", "by_rows"]

_CAUSAL = AttentionPattern(after=0)
_ALL = AttentionPattern()

Three = tuple[Tensor, Tensor, Tensor]
"""Query (n, M, D), key and value (n, L, D)."""
Slots = tuple[Bins, ...]
Kinds = tuple[int, ...]
"""Heads of what stands side by side in a row: (H, K, K) for queries, keys and values."""


def by_rows(x: Tensor, layout: Layout) -> bool:
    """Whether `RowAttention` is the way here: on a CPU, for texts that are not long."""
    return x.device.type == "cpu" and layout.longest <= KEPT_TOKENS


def attend_rows(
    qkv: Tensor,
    layout: Layout,
    heads: int,
    scaling: float,
    *,
    causal: bool,
    kv_heads: int | None = None,
    before: int | None = None,
) -> Tensor:
    """(R, W) queries, keys and values side by side -> (R, C); rows behind the texts come out as zeros.

    See `RowAttention` for `kv_heads` and `before`.
    """
    if not by_rows(qkv, layout):
        kinds = _kinds(heads, kv_heads)
        heads_of = qkv[: layout.tokens].unflatten(1, (sum(kinds), -1)).transpose(0, 1)  # (H + 2 K, T, D)
        q, k, v = heads_of.split(kinds)
        pattern = (_CAUSAL if before is None else AttentionPattern(before, 0)) if causal else _ALL
        out = packed_attention(q, k, v, layout, pattern, scaling=scaling).flatten(1)
        return filled_to(out, qkv.shape[0])
    return node_of_kept(qkv, RowAttention(layout, heads, scaling, causal, kv_heads, before))


def attend_read(
    q: Tensor, kv: Tensor, layout: Layout, heads: int, scaling: float, kv_heads: int | None = None
) -> Tensor:
    """One token of each text looks at its whole text: q (B, C), kv (R, 2 K D) keys and values -> (B, C)."""
    y: Tensor = _Read.apply(q, kv, ReadAttention(layout, heads, scaling, kv.shape[0], kv_heads))
    return y


@dataclass(frozen=True)
class RowAttention:
    """Attention over the rows of one layout, forward and backward without a graph.

    Attributes:
        layout: at most `KEPT_TOKENS` tokens a text.
        heads, scaling, causal: as in `attend_rows`.
        kv_heads: K; None: as many as heads.
        before: how many tokens before it a token sees (None: all); of causal attention only.
    """

    layout: Layout
    heads: int
    scaling: float
    causal: bool
    kv_heads: int | None = None
    before: int | None = None

    def forward(self, qkv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(R, W) -> (R, C), and what `backward` wants: q, k, v laid out, and the probabilities of each kind of bins."""
        layout, kinds = self.layout, _kinds(self.heads, self.kv_heads)
        slots = bins_of(layout)
        laid_out = _laid_out(qkv, layout, slots, kinds)
        out = laid_out.new_empty(laid_out.shape[0] // sum(kinds) * kinds[0], laid_out.shape[1])
        kept = [laid_out]
        views = zip(slots, _views(laid_out, slots, kinds), _views(out, slots, kinds[:1]), strict=True)
        for bins, (q, k, v), (o,) in views:  # (n H, L, D) and (n K, L, D)
            q, o = (x.view(k.shape[0], -1, k.shape[2]) for x in (q, o))  # (n K, H / K L, D)
            p = self._probabilities(q, k, bins)
            torch.bmm(p, v, out=o)
            kept.append(p)
        return _put_back(out, layout, slots, qkv.shape[0], kinds[:1]), kept

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the output (R, C) and what `forward` kept -> that of its input (R, W)."""
        layout, kinds = self.layout, _kinds(self.heads, self.kv_heads)
        laid_out, *probabilities = kept
        slots = bins_of(layout)
        parts = torch.empty_like(laid_out)
        grad_out = _laid_out(grad.contiguous(), layout, slots, kinds[:1])
        states = (_views(x, slots, k) for x, k in ((laid_out, kinds), (grad_out, kinds[:1]), (parts, kinds)))
        for (q, k, v), (do,), (gq, gk, gv), p in zip(*states, probabilities, strict=True):
            q, do, gq = (x.view(k.shape[0], -1, k.shape[2]) for x in (q, do, gq))  # (n K, H / K L, D)
            _fill_gradients_((gq, gk, gv), do, p, (q, k, v), self.scaling)
        return _put_back(parts, layout, slots, grad.shape[0], kinds)

    def _probabilities(self, q: Tensor, k: Tensor, bins: Bins) -> Tensor:
        """(n K, H / K L, L) softmax(q k^T * scaling) over what each place sees (its sums are fp32 in any dtype)."""
        kv_heads, times = self.kv_heads or self.heads, q.shape[1] // k.shape[1]
        bias = _bias(
            bins, self.layout, kv_heads, q.dtype, causal=self.causal, times=times, before=self.before
        )
        return torch.softmax(_scores(q, k, bias, self.scaling), dim=-1)


@dataclass(frozen=True)
class ReadAttention:
    """Attention of one token of each text, which sees its whole text, forward and backward without a graph.

    Attributes:
        layout: of the texts.
        heads, scaling, kv_heads: as in `RowAttention`.
        rows: R.
    """

    layout: Layout
    heads: int
    scaling: float
    rows: int
    kv_heads: int | None = None

    def forward(self, q: Tensor, kv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """q (B, C), kv (R, 2 K D) keys and values -> (B, C), and what `backward` wants."""
        kinds, slots = _kinds(self.heads, self.kv_heads)[1:], one_text_each(self.layout)
        q = q.contiguous()
        laid_out, out = _laid_out(kv, self.layout, slots, kinds), torch.empty_like(q)
        kept = [q, laid_out]
        parts = zip(
            slots, _views(laid_out, slots, kinds), *(self._parts(x, slots) for x in (q, out)), strict=True
        )
        for bins, (k, v), rows, o in parts:  # (n K, L, D) and (n K, H / K, D)
            bias = _bias(bins, self.layout, kinds[0], q.dtype, causal=False)  # (n K, 1, L) or None
            p = torch.softmax(_scores(rows, k, bias, self.scaling), dim=-1)
            torch.bmm(p, v, out=o)
            kept.append(p)
        return out, kept

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient of the output (B, C), and what `forward` kept -> those of q and kv."""
        kinds, slots = _kinds(self.heads, self.kv_heads)[1:], one_text_each(self.layout)
        q, laid_out, *probabilities = kept
        grad, of_q, of_kv = grad.contiguous(), torch.empty_like(q), torch.empty_like(laid_out)
        states = zip(
            *(self._parts(x, slots) for x in (q, grad, of_q)),
            *(_views(x, slots, kinds) for x in (laid_out, of_kv)),
            probabilities,
            strict=True,
        )
        for rows, do, gq, (k, v), (gk, gv), p in states:
            _fill_gradients_((gq, gk, gv), do, p, (rows, k, v), self.scaling)
        return of_q, _put_back(of_kv, self.layout, slots, self.rows, kinds)

    def _parts(self, x: Tensor, slots: Slots) -> list[Tensor]:
        """(B, H D) -> (n K, H / K, D) of each kind of bins."""
        kv_heads = self.kv_heads or self.heads
        size = x.shape[1] // self.heads
        return [part.view(len(part) * kv_heads, -1, size) for part in x.split([bins.n for bins in slots])]


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, attention: ReadAttention) -> Tensor:
        out, kept = attention.forward(q, kv)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kept)
            ctx.attention = attention
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.attention.backward(grad, ctx.saved_tensors), None)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """(n, M, D) and (n, L, D) -> (n, M, L): q k^T * scaling + bias, which expands to it."""
    if bias is None:
        return torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0.0, alpha=scaling)
    shape = (q.shape[0], q.shape[1], k.shape[1])
    return torch.baddbmm(bias.expand(shape), q, k.transpose(1, 2), alpha=scaling)


def _fill_gradients_(grads: Three, grad: Tensor, p: Tensor, states: Three, scaling: float) -> None:
    """The gradients of query, key and value, from that of the output (n, M, D) and the probabilities p (n, M, L)."""
    (gq, gk, gv), (q, k, v) = grads, states
    torch.bmm(p.transpose(1, 2), grad, out=gv)
    ds = torch.bmm(grad, v.transpose(1, 2))
    ds = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
    torch.baddbmm(gq, ds, k, beta=0.0, alpha=scaling, out=gq)
    torch.baddbmm(gk, ds.transpose(1, 2), q, beta=0.0, alpha=scaling, out=gk)


def _kinds(heads: int, kv_heads: int | None) -> Kinds:
    """The heads of query, key and value."""
    of_kv = heads if kv_heads is None else kv_heads
    return heads, of_kv, of_kv


def _laid_out(rows: Tensor, layout: Layout, slots: Slots, kinds: Kinds) -> Tensor:
    """(R, sum(kinds) D) -> (P, D) the states of each head of each text under each other, kind of bins by kind; see
    `_views`.

    Places that no text fills get the first row behind the texts.
    """
    if rows.shape[0] == layout.tokens:
        rows = nn.functional.pad(rows, (0, 0, 0, 1))
    places, _ = _places(layout, slots, kinds)
    return rows.reshape(rows.shape[0] * sum(kinds), -1).index_select(0, places)


def _put_back(laid_out: Tensor, layout: Layout, slots: Slots, rows: int, kinds: Kinds) -> Tensor:
    """(P, D) -> (R, sum(kinds) D); rows behind the texts are zero."""
    _, origins = _places(layout, slots, kinds)
    out = laid_out.new_empty(rows * sum(kinds), laid_out.shape[1])
    torch.index_select(laid_out, 0, origins, out=out[: len(origins)])
    out[len(origins) :] = 0
    return out.view(rows, -1)


def _views(laid_out: Tensor, slots: Slots, kinds: Kinds) -> list[list[Tensor]]:
    """The (n heads, L, D) parts of each kind of bins in (P, D), one for what stands side by side in a row."""
    parts = iter(laid_out.split([bins.n * heads * bins.places for bins in slots for heads in kinds]))
    return [[next(parts).view(bins.n * heads, bins.places, -1) for heads in kinds] for bins in slots]


def _places(layout: Layout, slots: Slots, kinds: Kinds) -> tuple[Tensor, Tensor]:
    """(P,) which of (R sum(kinds)) rows stands in each place, and (T sum(kinds),) in which place each of them stands;
    int32."""
    key = ("places", id(slots), kinds)
    if key not in layout.derived:
        T, at, of_row = layout.tokens, 0, sum(kinds)
        into: list[NDArray[np.int32]] = []
        back = np.empty(T * of_row, dtype=np.int32)
        for bins in slots:
            first = 0
            for heads in kinds:
                head = np.arange(first, first + heads, dtype=np.int32)[:, None]
                first += heads
                rows = (bins.token[:, None, :] * of_row + head).reshape(-1)  # (n, heads, L)
                into.append(rows)
                inside = np.flatnonzero(rows < T * of_row)
                back[rows[inside]] = inside + at
                at += rows.size
        layout.derived[key] = torch.from_numpy(np.concatenate(into)), torch.from_numpy(back)
    places: tuple[Tensor, Tensor] = layout.derived[key]
    return places


def _bias(
    bins: Bins,
    layout: Layout,
    heads: int,
    dtype: torch.dtype,
    *,
    causal: bool,
    times: int = 1,
    before: int | None = None,
) -> Tensor | None:
    """What `expand`s to (n heads, times L, L): the most negative number where a place is not seen, else 0; None: all
    are seen."""
    before = before if before is not None and before < bins.places - 1 else None
    if bins.alone and (causal or bins.full):  # what stands behind a token hides the empty places as well
        return _causal_bias(bins.places, dtype, times, before) if causal else None
    key = ("bias", id(bins), heads, dtype, causal, times, before)
    if key not in layout.derived:
        if causal:
            seen = np.tril(bins.together())
            seen = seen if before is None else np.triu(seen, -before)
        else:
            seen = bins.text[:, None] >= 0 if bins.alone else bins.together()
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(
            torch.from_numpy(~seen), torch.finfo(dtype).min
        )
        bias = bias if bias.shape[1] == 1 else bias.repeat(1, times, 1)
        layout.derived[key] = bias.repeat_interleave(heads, dim=0)
    found: Tensor | None = layout.derived[key]
    return found


@lru_cache(maxsize=512)
def _causal_bias(L: int, dtype: torch.dtype, times: int = 1, before: int | None = None) -> Tensor:
    """(times L, L): -inf at what stands behind a token, or more than `before` tokens before it."""
    with torch.inference_mode(False):
        bias = torch.full((L, L), -torch.inf, dtype=dtype).triu_(1)
        if before is not None:
            bias += torch.full((L, L), -torch.inf, dtype=dtype).tril_(-before - 1)
        return bias.repeat(times, 1)
