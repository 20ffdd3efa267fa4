"""Attention straight from a packed row of queries, keys and values side by side, for the engine's own blocks.

The same function as `veneer.engine.attention`, for the commonest case: as many key-value heads as query heads, each
token seeing all of its text or what stands before it. The row is laid out for the batched products in one copy, and
back in one, each with an index that is made once for a batch; texts share bins of a few lengths (see
`veneer.engine.bins`).

This file knows tensors and layouts, no model.

Shapes: T tokens, R >= T rows of the batch, B texts, H heads, D head size, C = H D, n bins of a kind, L places of each,
P places in all (for k of query, key and value).
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
from veneer.engine.packing import Layout

__all__ = ["RowAttention", "attend_read", "attend_rows", "by_rows"]

_CAUSAL = AttentionPattern(after=0)
_ALL = AttentionPattern()

Slots = tuple[Bins, ...]


def by_rows(x: Tensor, layout: Layout) -> bool:
    """Whether `RowAttention` is the way here: on a CPU, for texts that are not long."""
    return x.device.type == "cpu" and layout.longest <= KEPT_TOKENS


def attend_rows(qkv: Tensor, layout: Layout, heads: int, scaling: float, *, causal: bool) -> Tensor:
    """(R, 3 C) queries, keys and values side by side -> (R, C); rows behind the texts come out as zeros."""
    if not by_rows(qkv, layout):
        behind = qkv.shape[0] - layout.tokens
        q, k, v = qkv[: layout.tokens].unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)  # (H, T, D) each
        pattern = _CAUSAL if causal else _ALL
        out = packed_attention(q, k, v, layout, pattern, scaling=scaling).flatten(1)
        return nn.functional.pad(out, (0, 0, 0, behind)) if behind else out
    return _RowAttention.apply(qkv, RowAttention(layout, heads, scaling, causal))


def attend_read(q: Tensor, kv: Tensor, layout: Layout, heads: int, scaling: float) -> Tensor:
    """One token of each text looks at its whole text: q (B, C), kv (R, 2 C) keys and values -> (B, C)."""
    parts, first = [], 0
    slots = one_text_each(layout)
    laid_out = _LaidOut.apply(kv, layout, slots, 2, heads)
    for bins, (k, v) in zip(slots, _views(laid_out, slots, 2, heads), strict=True):  # (n H, L, D)
        n = bins.n
        rows = q[first : first + n].reshape(n * heads, 1, -1)  # (n H, 1, D)
        first += n
        bias = _bias(bins, layout, heads, torch.float32, causal=False)  # (n H, 1, L) or None
        scores = torch.bmm(rows, k.transpose(1, 2)).float() * scaling
        p = torch.softmax(scores if bias is None else scores + bias, dim=-1).to(q.dtype)
        parts.append(torch.bmm(p, v).reshape(n, -1))
    return torch.cat(parts)


@dataclass(frozen=True)
class RowAttention:
    """Attention over the rows of one layout, forward and backward without a graph.

    Attributes:
        layout: at most `KEPT_TOKENS` tokens a text.
        heads, scaling, causal: as in `attend_rows`.
    """

    layout: Layout
    heads: int
    scaling: float
    causal: bool

    def forward(self, qkv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(R, 3 C) -> (R, C), and what `backward` wants: q, k, v laid out, and the probabilities of each kind."""
        layout, heads = self.layout, self.heads
        slots = bins_of(layout)
        laid_out = _laid_out(qkv, layout, slots, 3, heads)
        out = laid_out.new_empty(laid_out.shape[0] // 3, laid_out.shape[1])
        kept = [laid_out]
        views = zip(slots, _views(laid_out, slots, 3, heads), _views(out, slots, 1, heads), strict=True)
        for bins, (q, k, v), o in views:  # (n H, L, D)
            p = _softmax_of_scores(q, k, bins, layout, heads, self.scaling, self.causal)  # (n H, L, L)
            torch.bmm(p, v, out=o[0])
            kept.append(p)
        return _put_back(out, layout, slots, qkv.shape[0], 1, heads), kept

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the output (R, C) and what `forward` kept -> that of its input (R, 3 C)."""
        layout, heads, scaling = self.layout, self.heads, self.scaling
        laid_out, *probabilities = kept
        slots = bins_of(layout)
        parts = torch.empty_like(laid_out)
        grad_out = _laid_out(grad.contiguous(), layout, slots, 1, heads)
        states = (_views(x, slots, k, heads) for x, k in ((laid_out, 3), (grad_out, 1), (parts, 3)))
        for (q, k, v), (do,), (gq, gk, gv), p in zip(*states, probabilities, strict=True):
            torch.bmm(p.transpose(1, 2), do, out=gv)
            ds = torch.bmm(do, v.transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
            torch.baddbmm(gq, ds, k, beta=0.0, alpha=scaling, out=gq)
            torch.baddbmm(gk, ds.transpose(1, 2), q, beta=0.0, alpha=scaling, out=gk)
        return _put_back(parts, layout, slots, grad.shape[0], 3, heads)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, attention: RowAttention) -> Tensor:
        out, kept = attention.forward(qkv)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(*kept)
            ctx.attention = attention
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.attention.backward(grad, ctx.saved_tensors), None


class _LaidOut(torch.autograd.Function):
    """`_laid_out` with its gradient, which is `_put_back`: each place of a text is filled by one row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: Layout, slots: Slots, k: int, heads: int) -> Tensor:
        ctx.rest = layout, slots, rows.shape[0], k, heads
        return _laid_out(rows, layout, slots, k, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _put_back(grad.contiguous(), *ctx.rest), None, None, None, None


def _laid_out(rows: Tensor, layout: Layout, slots: Slots, k: int, heads: int) -> Tensor:
    """(R, k C) -> (P, D) the states of each head of each text under each other, kind of bins by kind; see `_views`.

    Places that no text fills get the first row behind the texts.
    """
    if rows.shape[0] == layout.tokens:
        rows = nn.functional.pad(rows, (0, 0, 0, 1))
    places, _ = _places(layout, slots, k, heads)
    return rows.reshape(rows.shape[0] * k * heads, -1).index_select(0, places)


def _put_back(laid_out: Tensor, layout: Layout, slots: Slots, rows: int, k: int, heads: int) -> Tensor:
    """(P, D) -> (R, k C); rows behind the texts are zero."""
    _, origins = _places(layout, slots, k, heads)
    out = laid_out.new_empty(rows * k * heads, laid_out.shape[1])
    torch.index_select(laid_out, 0, origins, out=out[: len(origins)])
    out[len(origins) :] = 0
    return out.view(rows, -1)


def _views(laid_out: Tensor, slots: Slots, k: int, heads: int) -> list[Tensor]:
    """The (k, n H, L, D) part of each kind of bins in (P, D)."""
    sizes = [k * bins.n * heads * bins.places for bins in slots]
    return [
        part.view(k, bins.n * heads, bins.places, -1)
        for bins, part in zip(slots, laid_out.split(sizes), strict=True)
    ]


def _places(layout: Layout, slots: Slots, k: int, heads: int) -> tuple[Tensor, Tensor]:
    """(P,) which of (R k H) rows stands in each place, and (T k H,) in which place each of them stands; int32."""
    key = ("places", id(slots), k, heads)
    if key not in layout.derived:
        T, at = layout.tokens, 0
        into: list[NDArray[np.int32]] = []
        back = np.empty(T * k * heads, dtype=np.int32)
        kind = np.arange(k, dtype=np.int32)[:, None, None, None]
        head = np.arange(heads, dtype=np.int32)[:, None]
        for bins in slots:
            rows = ((bins.token[:, None, :] * k + kind) * heads + head).reshape(-1)  # (k, n, H, L)
            into.append(rows)
            inside = np.flatnonzero(rows < T * k * heads)
            back[rows[inside]] = inside + at
            at += rows.size
        layout.derived[key] = torch.from_numpy(np.concatenate(into)), torch.from_numpy(back)
    places: tuple[Tensor, Tensor] = layout.derived[key]
    return places


def _softmax_of_scores(
    q: Tensor, k: Tensor, bins: Bins, layout: Layout, heads: int, scaling: float, causal: bool
) -> Tensor:
    """(n H, L, L) softmax(q k^T * scaling) over what each place sees (its sums are fp32 in any dtype)."""
    n_heads, L, _ = q.shape
    bias = _bias(bins, layout, heads, q.dtype, causal)
    if bias is None:
        scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0.0, alpha=scaling)
    else:
        scores = torch.baddbmm(bias.expand(n_heads, L, L), q, k.transpose(1, 2), alpha=scaling)
    return torch.softmax(scores, dim=-1)


def _bias(bins: Bins, layout: Layout, heads: int, dtype: torch.dtype, causal: bool) -> Tensor | None:
    """What `expand`s to (n H, L, L): the most negative number where a place is not seen, else 0; None: all are."""
    if bins.alone and (causal or bins.full):  # what stands behind a token hides the empty places as well
        return _causal_bias(bins.places, dtype) if causal else None
    key = ("bias", id(bins), heads, dtype, causal)
    if key not in layout.derived:
        seen = (
            np.tril(bins.together())
            if causal
            else bins.together()
            if not bins.alone
            else bins.text[:, None] >= 0
        )
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(
            torch.from_numpy(~seen), torch.finfo(dtype).min
        )
        layout.derived[key] = bias.repeat_interleave(heads, dim=0)
    found: Tensor = layout.derived[key]
    return found


@lru_cache(maxsize=512)
def _causal_bias(L: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((L, L), -torch.inf, dtype=dtype).triu_(1)
