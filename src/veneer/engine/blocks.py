"""Transformer blocks in the engine's own form: few large products, one attention, nothing that is not read.

A `Program` computes what a backbone of transformers computes on a packed row, from the backbone's own modules: GPT-2's
and Llama's blocks (norm first) and BERT's (norm last). Families without a form here run through transformers' own
forward. The start-up check holds a program against the padded computation before it is used.

This file knows the forms of blocks; which module of a family is what is said in `veneer.engine.families`
and `veneer.engine.decoders`.

Shapes: T tokens, R rows (on a CPU a few more than T, which belong to no text), B texts, C hidden size, S read
positions, filled up to one of few numbers, U nodes (see `veneer.engine.beginnings`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from veneer.engine.activations import Activation
from veneer.engine.beginnings import Beginnings, of_tokens
from veneer.engine.block_step import Attention, BlockStep, Reading, ReadStep
from veneer.engine.block_tail import Tail
from veneer.engine.compiled_attention import CompiledRows, read_attention, row_attention
from veneer.engine.frozen import takes_any_rows
from veneer.engine.gated import Gated
from veneer.engine.linears import LinearGroup, Slot
from veneer.engine.node_attention import CompiledNodes, NodeAttention
from veneer.engine.norms import applied, is_plain
from veneer.engine.packing import Layout, PackedBatch, filled_to, filled_up
from veneer.engine.row_attention import ReadAttention, RowAttention, attend_read, attend_rows
from veneer.engine.turned import Turned

__all__ = ["Block", "Program"]


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        qkv: query, key and value in this order.
        out: the projection after attention.
        up, down: the feed-forward layer; `up` begins with the gate where there is one.
        norm_1, norm_2: where the norms of attention and feed-forward hang; they stand before them (`norm_first`), or
            after the residual sum.
        activation: between up and down.
        heads, scaling: of the attention.
        causal: a token sees what stands before it, not its whole text.
        norm_first: GPT-2's and Llama's order; else BERT's.
        turned: rotary positions and norms of heads, with the numbers of heads, or None.
        before: how many tokens before it a token sees (None: all).
        parts: modules that are not run themselves, so that nobody's hook may be on them.
    """

    qkv: LinearGroup
    out: LinearGroup
    up: LinearGroup
    down: LinearGroup
    norm_1: Slot
    norm_2: Slot
    activation: Activation | Gated
    heads: int
    scaling: float
    causal: bool
    norm_first: bool
    turned: Turned | None = None
    before: int | None = None
    parts: tuple[nn.Module, ...] = ()

    @property
    def norms(self) -> tuple[nn.Module, nn.Module]:
        """What hangs in the norms' slots now."""
        first, second = (getattr(parent, name) for parent, name in (self.norm_1, self.norm_2))
        return first, second

    def ready(self) -> bool:
        """Whether this call can run in this form."""
        if any(norm._forward_hooks for norm in self.norms):
            return False
        if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in self.parts):
            return False
        if self.turned is not None and not self.turned.ready():
            return False
        return all(group.ready() for group in (self.qkv, self.out, self.up, self.down))

    def __call__(
        self,
        x: Tensor,
        layout: Layout,
        reads: Tensor | None = None,
        shared: Beginnings | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """(R, C) -> (R, C), or (S, C) at the read positions: one of each text, in order, or any.

        With `shared`, x and the result are states of the nodes, (U, C); read positions are tokens all the same. With
        `recompute` the block keeps its input alone and computes the rest again in the backward pass (Chen et al. 2016,
        arXiv:1604.06174).
        """
        step = self._step(x, layout, reads, shared)
        if step is not None:
            return step(x, recompute=recompute)
        if recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._composed, x, layout, reads, shared, use_reentrant=False)
            return again
        return self._composed(x, layout, reads, shared)

    def _step(
        self, x: Tensor, layout: Layout, reads: Tensor | None, shared: Beginnings | None
    ) -> BlockStep | ReadStep | None:
        """The block by hand, where it has that form for this call."""
        norm_1, norm_2 = self.norms
        if not (is_plain(norm_1, x) and is_plain(norm_2, x)):
            return None
        if reads is not None and self._sees_all(layout, reads):
            return self._read_step(x, layout, reads, shared)
        attention = self._attention(x, layout, shared)
        if attention is None:
            return None
        n, places = (None, None) if reads is None else (len(reads), _rows_of(filled_up(reads), shared))
        return BlockStep(*self._around(x.dtype), self.qkv.joined(x.dtype), attention, n, places)

    def _read_step(self, x: Tensor, layout: Layout, reads: Tensor, shared: Beginnings | None) -> ReadStep:
        """The block by hand where one token of each text is read, which sees its whole text."""
        q, kv = (self.qkv.joined(x.dtype, columns) for columns in self._columns(x.shape[1]))
        places = _rows_of(filled_up(reads), shared)
        reading = self._reading(x, layout, reads, shared)
        return ReadStep(*self._around(x.dtype), q, kv, reading, len(reads), places, shared)

    def _around(self, dtype: torch.dtype) -> tuple[nn.Module | None, Tail]:
        """What stands before attention, and behind it."""
        norm_1, norm_2 = self.norms
        before, inner, outer = (norm_1, norm_2, None) if self.norm_first else (None, norm_1, norm_2)
        out, up, down = (group.joined(dtype) for group in (self.out, self.up, self.down))
        return before, Tail(out, up, down, self.activation, inner, outer)

    def _attention(self, x: Tensor, layout: Layout, shared: Beginnings | None) -> Attention | None:
        """The attention over rows like those of x, of tokens or nodes; None where it has no such form."""
        plain = RowAttention(layout, self.heads, self.scaling, self.causal, self._kv_heads, self.before)
        size = x.shape[1] // self.heads if self.turned is None else self.turned.size
        found = row_attention(plain, x, size)
        if found is None:
            return None
        if self.turned is None and shared is not None and isinstance(found, CompiledRows):
            return CompiledNodes(found, shared)
        rows = found if self.turned is None else self.turned.attention(found, _like_rows(x, shared))
        return rows if shared is None else NodeAttention(rows, shared)

    def _reading(self, x: Tensor, layout: Layout, reads: Tensor, shared: Beginnings | None) -> Reading:
        """The attention of one token of each text; x are states of tokens, or of nodes."""
        rows = _like_rows(x, shared)
        inner = read_attention(ReadAttention(layout, self.heads, self.scaling, len(rows), self._kv_heads), x)
        return inner if self.turned is None else self.turned.reading(inner, reads, rows)

    @property
    def _kv_heads(self) -> int | None:
        return None if self.turned is None else self.turned.kv_heads

    def _columns(self, C: int) -> tuple[slice, slice]:
        """Which outputs of `qkv` are queries, and which are keys and values."""
        if self.turned is None:
            return slice(0, C), slice(C, 3 * C)
        of_q, of_kv = (n * self.turned.size for n in (self.turned.heads, 2 * self.turned.kv_heads))
        return slice(0, of_q), slice(of_q, of_q + of_kv)

    def _composed(self, x: Tensor, layout: Layout, reads: Tensor | None, shared: Beginnings | None) -> Tensor:
        """The same from differentiable parts."""
        h = applied(self.norms[0], x) if self.norm_first else x
        if reads is None:
            a = self._attended(h, layout, shared)
            return self._rest(a if shared is None else shared.of_nodes(a), x)
        few = filled_up(reads)
        places = _rows_of(few, shared)
        if self._sees_all(layout, reads):
            a = self._read(h, layout, reads, places, shared)
        else:
            a = self._attended(h, layout, shared).index_select(0, few)
        return self._rest(a, x.index_select(0, places))[: len(reads)]

    def _attended(self, h: Tensor, layout: Layout, shared: Beginnings | None) -> Tensor:
        """(R, C) attention of every row, from normed states h (R, C) or those of nodes."""
        qkv = of_tokens(self.qkv(h), shared)
        if self.turned is None:
            return attend_rows(qkv, layout, self.heads, self.scaling, causal=self.causal)
        return attend_rows(
            self.turned.qkv(qkv, layout),
            layout,
            self.heads,
            self.scaling,
            causal=self.causal,
            kv_heads=self.turned.kv_heads,
            before=self.before,
        )

    def _read(
        self, h: Tensor, layout: Layout, reads: Tensor, places: Tensor, shared: Beginnings | None
    ) -> Tensor:
        """(S, C) attention of one token of each text, from normed states h (R, C) or those of nodes.

        `places` (S,) say where their states are in h, and fill up B to S; the rows behind B are zeros.
        """
        of_q, of_kv = self._columns(h.shape[1])
        kv = of_tokens(self.qkv(h, columns=of_kv), shared)
        q = self.qkv(h.index_select(0, places), columns=of_q)[: len(reads)]
        if self.turned is not None:
            q, kv = self.turned.queries(q, layout, reads, kv), self.turned.keys(kv, layout)
        a = attend_read(q, kv, layout, self.heads, self.scaling, self._kv_heads)
        return filled_to(a, len(places))

    def _sees_all(self, layout: Layout, reads: Tensor) -> bool:
        """Whether `reads` is one token of each text, in order, that sees its whole text."""
        if self.before is not None and self.before < layout.longest - 1:
            return False
        return _whole_view(layout, reads, self.causal)

    def _rest(self, a: Tensor, x: Tensor) -> Tensor:
        """What comes after attention: (S, C) its output and the residual -> (S, C)."""
        norm_1, norm_2 = self.norms
        if self.norm_first:
            x = self.out(a, residual=x)
            return self.down(self._opened(applied(norm_2, x)), residual=x)
        x = norm_1(self.out(a, residual=x))
        y: Tensor = norm_2(self.down(self._opened(x), residual=x))
        return y

    def _opened(self, x: Tensor) -> Tensor:
        """(S, C) -> (S, m) the feed-forward layer's middle."""
        if torch.is_grad_enabled():
            return self.activation(self.up(x))
        return self.up.joined(x.dtype).activated(x, self.activation)


_LARGE = 1024  # tokens: of more, rows that are filled up are a few in a hundred


@dataclass(frozen=True)
class Program:
    """A backbone as embedding, blocks and a last norm.

    Attributes:
        embed: (T, C) from a batch.
        blocks: in order.
        last_norm: where the norm after the last block hangs, or None.
    """

    embed: Callable[[PackedBatch], Tensor]
    blocks: Sequence[Block]
    last_norm: Slot | None

    def forget_(self) -> None:
        """Let go of the weights that were arranged, which are about to be replaced (see `LinearGroup.forget_`)."""
        for block in self.blocks:
            for group in (block.qkv, block.out, block.up, block.down):
                group.forget_()

    def ready(self, start: int = 0) -> bool:
        """Whether a call from block `start` on can run in this form now (see `LinearGroup.ready`)."""
        return all(block.ready() for block in self.blocks[start:])

    @property
    def causal(self) -> bool:
        """Whether every block is."""
        return all(block.causal for block in self.blocks)

    @property
    def width(self) -> int:
        """C."""
        weight = self.blocks[0].norms[0].weight
        assert isinstance(weight, Tensor)
        return weight.shape[0]

    def rows(self, batch: PackedBatch) -> int:
        """R >= T: how many rows hold a batch's T tokens.

        On a CPU one of few numbers, where a new one costs new kernels, or the batch is large: then its memory is used
        again.
        """
        if batch.input_ids.device.type != "cpu":
            return batch.tokens
        weight = self.blocks[0].norms[0].weight
        assert isinstance(weight, Tensor)
        return batch.tokens if batch.tokens < _LARGE and takes_any_rows(weight) else batch.layout.rows

    def __call__(
        self,
        batch: PackedBatch,
        reads: Tensor | None = None,
        *,
        start: int = 0,
        x: Tensor | None = None,
        shared: Beginnings | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """(T, C) last hidden states, or (S, C) at the read positions.

        `start` and `x` (T, C) go on from the hidden states before block `start` instead of from the tokens. `shared`
        computes what texts have in common at their beginning once (causal blocks only). With `recompute` the blocks
        keep their inputs alone for the backward pass.
        """
        T, layout = batch.tokens, batch.layout
        x = self._entered(batch, x, shared)
        last = len(self.blocks) - 1
        for i in range(start, len(self.blocks)):
            x = self.blocks[i](x, layout, reads if i == last else None, shared, recompute=recompute)
        read = reads is not None and start <= last
        x = x if self.last_norm is None else applied(getattr(*self.last_norm), x)
        if not read:
            x = of_tokens(x, shared)[:T]
        return x if read or reads is None else x.index_select(0, reads)

    def prefix(self, batch: PackedBatch, stop: int, shared: Beginnings | None = None) -> Tensor:
        """(T, C) the hidden states before block `stop`, without gradients; (U, C) of the nodes with `shared`."""
        with torch.inference_mode():
            x = self._entered(batch, None, shared)
            for block in self.blocks[:stop]:
                x = block(x, batch.layout, None, shared)
            return x[: batch.tokens if shared is None else shared.nodes]

    def _entered(self, batch: PackedBatch, x: Tensor | None, shared: Beginnings | None) -> Tensor:
        """What the first block to be computed reads: a state for each row, or for each node."""
        if x is None and shared is not None:
            return self.embed(batch.only(shared.first_token))
        rows = self.rows(batch) if shared is None else len(shared.node_of_token)
        if x is None:
            x = self.embed(batch.filled_up() if rows > batch.tokens else batch)
        x = filled_to(x, rows)
        return x if shared is None else shared.of_nodes(x)


def _rows_of(tokens: Tensor, shared: Beginnings | None) -> Tensor:
    """(S,) which rows of the states hold those of these tokens (S,)."""
    return tokens if shared is None else shared.node_of_token.index_select(0, tokens)


def _like_rows(x: Tensor, shared: Beginnings | None) -> Tensor:
    """A tensor with as many rows (R, ...) as the tokens have, where x are states of rows or of nodes."""
    return x if shared is None else x.new_empty(len(shared.node_of_token), 0)


def _whole_view(layout: Layout, reads: Tensor, causal: bool) -> bool:
    """Whether `reads` is one token of each text, in order, that sees its whole text."""
    if reads.shape[0] != len(layout.lengths):
        return False
    if causal:
        return reads is layout.last or torch.equal(reads, layout.last)
    return reads is layout.first or torch.equal(reads, layout.first)
