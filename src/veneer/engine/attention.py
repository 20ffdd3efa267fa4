"""Attention over a packed row: each text sees itself only.

For short texts plain batched products of texts of similar length are the fastest exact form on a CPU (5 to 10 times
faster than `scaled_dot_product_attention` there); longer texts go in blocks of query rows whose probabilities are
computed again in the backward pass, so that memory grows with the block and not with the square of the text.
On a GPU PyTorch's variable-length flash attention is used where it can be.

This file knows no model and no task: it gets queries, keys, values, and the layout of the row.

Shapes: T tokens of the packed row, H heads, K key-value heads, D head size, n texts of a group, L its longest text,
R rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from veneer.engine.packing import Group, Layout

__all__ = ["AttentionPattern", "packed_attention"]

# Groups whose longest text has more tokens than this go block by block, and their probabilities are not kept.
KEPT_TOKENS = 256
BLOCK_ROWS = 256


@dataclass(frozen=True)
class AttentionPattern:
    """Which tokens of its own text a token sees.

    Attributes:
        before: how many tokens back (None: all).
        after: how many tokens ahead (None: all; 0: causal).
    """

    before: int | None = None
    after: int | None = None

    @property
    def everything(self) -> bool:
        """True where each token sees its whole text."""
        return self.before is None and self.after is None

    def keys(self, rows: range, length: int) -> range:
        """The keys that any of these rows sees, in a text of `length` tokens."""
        first = 0 if self.before is None else max(0, rows.start - self.before)
        last = length if self.after is None else min(length, rows.stop + self.after)
        return range(first, last)

    def hidden(self, rows: range, keys: range, device: torch.device) -> Tensor | None:
        """(R, number of keys) bool, True where a row does not see a key; None where all are seen."""
        distance = torch.arange(keys.start, keys.stop, device=device) - torch.arange(
            rows.start, rows.stop, device=device
        ).unsqueeze(1)
        masks = []
        if self.before is not None and rows.stop - 1 - keys.start > self.before:
            masks.append(distance < -self.before)
        if self.after is not None and keys.stop - 1 - rows.start > self.after:
            masks.append(distance > self.after)
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else masks[0] | masks[1]


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    pattern: AttentionPattern,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T * scaling) v inside each text, as in Vaswani et al. 2017, section 3.2.1.

    Args:
        query: (H, T, D), float32 or bfloat16.
        key, value: (K, T, D), with H a multiple of K.
        layout: where each text lies in the row.
        pattern: what a token sees of its own text.
        scaling: factor of the products.
        softcap: c in c * tanh(scores / c) (Gemma 2), or None.
        dropout: probability of dropping an attention weight.

    Returns:
        (T, H, D), contiguous.
    """
    if query.device.type == "cuda" and softcap is None and dropout == 0.0:
        flash = _flash(query, key, value, layout, pattern, scaling)
        if flash is not None:
            return flash
    if dropout > 0.0:
        return _composed(query, key, value, layout, pattern, scaling, softcap, dropout)
    return _PackedAttention.apply(query, key, value, layout, pattern, scaling, softcap)


class _PackedAttention(torch.autograd.Function):
    """Forward and backward by hand: nothing is kept but q, k, v and, for short texts, the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        pattern: AttentionPattern,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        heads, tokens, size = query.shape
        out = query.new_empty(tokens, heads, size)
        keep = any(ctx.needs_input_grad[:3])
        kept: list[Tensor] = []
        for group in layout.groups:
            q, k, v = _gathered(group, query, key, value)  # (H * n, L, D)
            o = torch.empty_like(q)
            for rows in _blocks(group.longest):
                keys = pattern.keys(rows, group.longest)
                p = _probabilities(q, k, group, heads, rows, keys, pattern, scaling, softcap)
                torch.bmm(p, v[:, keys.start : keys.stop], out=o[:, rows.start : rows.stop])
                if keep and group.longest <= KEPT_TOKENS:
                    kept.append(p)
            _scatter_(out, group, o, heads)
        if keep:
            ctx.save_for_backward(query, key, value, *kept)
            ctx.rest = (layout, pattern, scaling, softcap)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        layout, pattern, scaling, softcap = ctx.rest
        heads, tokens, size = query.shape
        grads = [query.new_empty(tokens, heads, size) for _ in range(3)]
        grad_heads = grad_out.transpose(0, 1)  # (H, T, D)
        kept_at = 0
        for group in layout.groups:
            q, k, v = _gathered(group, query, key, value)
            do = _gather(group, grad_heads, zero_padding=True)
            whole = group.longest <= KEPT_TOKENS
            gq = torch.empty_like(q)
            gk, gv = (
                (torch.empty_like(k), torch.empty_like(v))
                if whole
                else (torch.zeros_like(k), torch.zeros_like(v))
            )
            for rows in _blocks(group.longest):
                keys = pattern.keys(rows, group.longest)
                r, c = slice(rows.start, rows.stop), slice(keys.start, keys.stop)
                if whole:
                    p = kept[kept_at]
                    kept_at += 1
                else:
                    p = _probabilities(q, k, group, heads, rows, keys, pattern, scaling, softcap)
                ds = torch.bmm(do[:, r], v[:, c].transpose(1, 2))
                ds = torch.ops.aten._softmax_backward_data(ds, p, -1, p.dtype)
                if softcap is not None:
                    ds = ds * _softcap_slope(q[:, r], k[:, c], scaling, softcap)
                if whole:  # one block: the products are the gradients
                    torch.bmm(p.transpose(1, 2), do, out=gv)
                    torch.bmm(ds.transpose(1, 2), q, out=gk)
                else:
                    gv[:, c].baddbmm_(p.transpose(1, 2), do[:, r])
                    gk[:, c].baddbmm_(ds.transpose(1, 2), q[:, r])
                torch.bmm(ds, k[:, c], out=gq[:, r])
            for grad, part in zip(grads, (gq.mul_(scaling), gk.mul_(scaling), gv), strict=True):
                _scatter_(grad, group, part, heads)
        gq, gk, gv = (g.transpose(0, 1) for g in grads)
        if key.shape[0] != heads:
            gk, gv = (g.unflatten(0, (key.shape[0], -1)).sum(1) for g in (gk, gv))
        return gq, gk, gv, None, None, None, None


def _blocks(length: int) -> list[range]:
    if length <= KEPT_TOKENS:
        return [range(length)]
    return [range(start, min(start + BLOCK_ROWS, length)) for start in range(0, length, BLOCK_ROWS)]


def _gather(group: Group, states: Tensor, *, zero_padding: bool = False) -> Tensor:
    """(H, T, D) -> (H * n, L, D): the group's tokens, each text filled up to L."""
    part = states[:, group.start : group.end]
    if group.gather is not None:
        part = part.index_select(1, group.gather)  # (H, n * L, D)
    part = part.reshape(-1, group.longest, part.shape[-1])
    if zero_padding and group.padding is not None:
        heads = states.shape[0]
        view = part.view(heads, group.n, group.longest, -1)
        view.masked_fill_(group.padding.transpose(1, 2), 0.0)
    return part


def _gathered(group: Group, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (_gather(group, states) for states in (query, key, value))
    repeats = query.shape[0] // key.shape[0]
    if repeats > 1:  # key-value heads shared by several query heads
        k, v = (
            s.unflatten(0, (-1, 1, group.n)).expand(-1, repeats, -1, -1, -1).flatten(0, 2) for s in (k, v)
        )
    return q, k, v


def _scatter_(out: Tensor, group: Group, states: Tensor, heads: int) -> None:
    """Write (H * n, L, D) back to the group's tokens in `out` (T, H, D)."""
    states = states.view(heads, group.n * group.longest, -1)
    if group.valid is not None:
        states = states.index_select(1, group.valid)
    out[group.start : group.end].copy_(states.transpose(0, 1))


def _probabilities(
    q: Tensor,
    k: Tensor,
    group: Group,
    heads: int,
    rows: range,
    keys: range,
    pattern: AttentionPattern,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """(H * n, R, keys) the softmax of the rows' scores over the keys that they see."""
    r, c = slice(rows.start, rows.stop), slice(keys.start, keys.stop)
    empty = q.new_empty(1).expand(q.shape[0], len(rows), len(keys))
    scores = torch.baddbmm(empty, q[:, r], k[:, c].transpose(1, 2), beta=0.0, alpha=scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = pattern.hidden(rows, keys, q.device)
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    if group.padding is not None and pattern.after != 0:  # causal rows never reach the padding behind them
        filled = scores.view(heads, group.n, len(rows), len(keys))
        filled.masked_fill_(group.padding[..., c], torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1)


def _softcap_slope(q: Tensor, k: Tensor, scaling: float, softcap: float) -> Tensor:
    """d softcap(s) / d s = 1 - tanh(s / c)^2, from the scores computed again."""
    return 1.0 - torch.tanh(torch.bmm(q, k.transpose(1, 2)) * (scaling / softcap)).square()


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    pattern: AttentionPattern,
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The same from differentiable parts, for attention dropout: slower, keeps every intermediate."""
    heads = query.shape[0]
    parts = []
    for group in layout.groups:
        q, k, v = _gathered(group, query, key, value)
        rows = range(group.longest)
        p = _probabilities(q, k, group, heads, rows, rows, pattern, scaling, softcap)
        o = torch.bmm(torch.dropout(p, dropout, True), v).view(heads, group.n * group.longest, -1)
        parts.append(o if group.valid is None else o.index_select(1, group.valid))
    return torch.cat(parts, dim=1).transpose(0, 1).contiguous()


def _flash(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, pattern: AttentionPattern, scaling: float
) -> Tensor | None:
    """PyTorch's variable-length flash attention, where dtype, pattern and version allow it; else None."""
    if query.dtype not in (torch.float16, torch.bfloat16) or not (pattern.everything or pattern == _CAUSAL):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    q, k, v = (s.transpose(0, 1) for s in (query, key, value))  # (T, H, D)
    if key.shape[0] != query.shape[0]:
        repeats = query.shape[0] // key.shape[0]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    ends, longest = layout.cu_seqlens, layout.longest
    window = (-1, 0) if pattern == _CAUSAL else (-1, -1)
    out: Tensor = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=window)  # type: ignore[assignment]
    return out


_CAUSAL = AttentionPattern(after=0)
