"""Attention straight from a packed row of queries, keys and values side by side, for the engine's own blocks.

The same function as `veneer.engine.attention`, for the commonest case: as many key-value heads as query heads, each
token seeing all of its text or what stands before it. The row is laid out for the batched products in one copy, and
back in one; the softmax is taken in fp32, which is both more exact and faster than in bf16.

This file knows tensors and layouts, no model.

Shapes: T tokens, B texts, H heads, D head size, C = H D, n texts of a group, L its longest text.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veneer.engine.attention import KEPT_TOKENS, AttentionPattern, packed_attention
from veneer.engine.packing import Group, Layout

__all__ = ["attend_read", "attend_rows"]

_CAUSAL = AttentionPattern(after=0)
_ALL = AttentionPattern()


def attend_rows(qkv: Tensor, layout: Layout, heads: int, scaling: float, *, causal: bool) -> Tensor:
    """(T, 3 C) queries, keys and values side by side -> (T, C)."""
    if qkv.device.type != "cpu" or layout.longest > KEPT_TOKENS:
        q, k, v = qkv.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)  # (H, T, D) each
        pattern = _CAUSAL if causal else _ALL
        return packed_attention(q, k, v, layout, pattern, scaling=scaling).flatten(1)
    return _RowAttention.apply(qkv, layout, heads, scaling, causal)


def attend_read(q: Tensor, kv: Tensor, layout: Layout, heads: int, scaling: float) -> Tensor:
    """One token of each text looks at its whole text: q (B, C), kv (T, 2 C) keys and values -> (B, C)."""
    parts, first = [], 0
    for group in layout.groups:
        n, L = group.n, group.longest
        k, v = _laid_out(group, kv[group.start : group.end], 2, heads)  # (n H, L, D)
        rows = q[first : first + n].reshape(n * heads, 1, -1)  # (n H, 1, D)
        first += n
        bias = _padding_bias(group, heads, torch.float32, q.device)  # (n H, 1, L) or None
        scores = torch.bmm(rows, k.transpose(1, 2)).float() * scaling
        p = torch.softmax(scores if bias is None else scores + bias, dim=-1).to(q.dtype)
        parts.append(torch.bmm(p, v).reshape(n, -1))
        assert p.shape[-1] == L
    return torch.cat(parts)


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, heads: int, scaling: float, causal: bool) -> Tensor:
        out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
        kept: list[Tensor] = []
        for group in layout.groups:
            x = _laid_out(group, qkv[group.start : group.end], 3, heads)  # (3, n H, L, D)
            p = _softmax_of_scores(x[0], x[1], group, heads, scaling, causal)  # (n H, L, L)
            _put_back_(out, group, torch.bmm(p, x[2]).unsqueeze(0), heads)
            kept += [x, p]
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(*kept)
            ctx.rest = layout, heads, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layout, heads, scaling = ctx.rest
        kept = iter(ctx.saved_tensors)
        grad_qkv = grad.new_empty(grad.shape[0], 3 * grad.shape[1])
        for group in layout.groups:
            x, p = next(kept), next(kept)
            q, k, v = x
            (do,) = _laid_out(group, grad[group.start : group.end], 1, heads)
            parts = torch.empty_like(x)
            torch.bmm(p.transpose(1, 2), do, out=parts[2])
            ds = torch.bmm(do, v.transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
            torch.baddbmm(parts[0], ds, k, beta=0.0, alpha=scaling, out=parts[0])
            torch.baddbmm(parts[1], ds.transpose(1, 2), q, beta=0.0, alpha=scaling, out=parts[1])
            _put_back_(grad_qkv, group, parts, heads)
        return grad_qkv, None, None, None, None


def _laid_out(group: Group, rows: Tensor, k: int, heads: int) -> Tensor:
    """(tokens, k C) -> (k, n H, L, D); padded places are zero."""
    n, L = group.n, group.longest
    if group.valid is not None:
        rows = rows.new_zeros(n * L, rows.shape[1]).index_copy(0, group.valid, rows)
    x = rows.reshape(n, L, k, heads, -1).permute(2, 0, 3, 1, 4)  # (k, n, H, L, D)
    return x.reshape(k, n * heads, L, -1)


def _put_back_(out: Tensor, group: Group, x: Tensor, heads: int) -> None:
    """(k, n H, L, D) -> the group's rows of `out` (T, k C)."""
    k, _, L, D = x.shape
    rows = x.view(k, group.n, heads, L, D).permute(1, 3, 0, 2, 4)  # (n, L, k, H, D)
    target = out[group.start : group.end]
    if group.valid is None:
        target.view(group.n, L, k, heads, D).copy_(rows)
    else:
        torch.index_select(rows.reshape(group.n * L, -1), 0, group.valid, out=target)


def _softmax_of_scores(
    q: Tensor, k: Tensor, group: Group, heads: int, scaling: float, causal: bool
) -> Tensor:
    """(n H, L, L) softmax(q k^T * scaling) over what each row sees, taken in fp32."""
    n_heads, L, _ = q.shape
    if causal:  # what stands behind a token hides the padding as well
        bias: Tensor | None = _causal_bias(L, q.dtype)  # (L, L)
    else:
        bias = _padding_bias(group, heads, q.dtype, q.device)  # (n H, 1, L)
    if bias is None:
        scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0.0, alpha=scaling)
    else:
        scores = torch.baddbmm(bias.expand(n_heads, L, L), q, k.transpose(1, 2), alpha=scaling)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)


@lru_cache(maxsize=512)
def _causal_bias(L: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((L, L), -torch.inf, dtype=dtype).triu_(1)


def _padding_bias(group: Group, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """(n H, 1, L): the most negative number at padded places, else 0; None where nothing is padded."""
    if group.padding is None:
        return None
    bias = torch.zeros(group.padding.shape, dtype=dtype, device=device)
    bias.masked_fill_(group.padding, torch.finfo(dtype).min)
    return bias.repeat_interleave(heads, dim=0)
