"""Attention over packed rows by the compiled kernels; stands where `veneer.engine.row_attention`'s stands.

The kernels go from text to text, so that nothing is laid out, nothing is padded, and nothing is kept but the input.

This file knows tensors and layouts, no model. Shapes as in `veneer.engine.row_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.engine.native import Kernels, Texts, kernels_for
from veneer.engine.packing import Layout
from veneer.engine.row_attention import ReadAttention, RowAttention, by_rows

__all__ = [
    "COMPILED_TOKENS",
    "TILED_TOKENS",
    "CompiledRead",
    "CompiledRows",
    "read_attention",
    "row_attention",
]


COMPILED_TOKENS = 768
"""Of the longest text that goes to the kernels whole; beyond it block by block is as fast (docs/experiments.md)."""

TILED_TOKENS = 2048
"""The same where the matrix unit computes it, which is faster still; every thread's scratch takes 16 MB then."""


def row_attention(plain: RowAttention, like: Tensor, size: int) -> RowAttention | CompiledRows | None:
    """The attention for rows like these, heads of so many numbers: by the kernels where there are any.

    None where texts are too long for it.
    """
    found = kernels_for(like)
    if found is not None:
        limit = TILED_TOKENS if found.attends_in_tiles(like.dtype, size) else COMPILED_TOKENS
        if plain.layout.longest <= limit:
            return CompiledRows(plain, found)
    return plain if by_rows(like, plain.layout) else None


def read_attention(plain: ReadAttention, like: Tensor) -> ReadAttention | CompiledRead:
    """The same for one token of each text."""
    found = kernels_for(like)
    return plain if found is None else CompiledRead(plain, found)


@dataclass(frozen=True)
class CompiledRows:
    """`RowAttention` by the kernels.

    Attributes:
        plain: what it stands for; its texts may be longer here, up to `COMPILED_TOKENS` or `TILED_TOKENS`.
        kernels: that compute.
    """

    plain: RowAttention
    kernels: Kernels

    @property
    def layout(self) -> Layout:
        """Of the texts."""
        return self.plain.layout

    def forward(self, qkv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(R, W) -> (R, C), and what `backward` wants: the input."""
        qkv = qkv.contiguous()
        return self.kernels.attend(qkv, self.texts(qkv.shape[1])), [qkv]

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the output (R, C) and what `forward` kept -> that of its input (R, W)."""
        (qkv,) = kept
        return self.kernels.attend_gradient(qkv, grad.contiguous(), self.texts(qkv.shape[1]))

    def texts(self, width: int) -> Texts:
        """The texts as the kernels take them, for rows of so many numbers; made once a layout."""
        plain, layout = self.plain, self.plain.layout
        kv_heads = plain.kv_heads or plain.heads
        key = ("rows", plain.heads, kv_heads, width, plain.scaling, plain.causal, plain.before)
        if key not in layout.derived:
            layout.derived[key] = Texts(
                layout.cu_seqlens,
                layout.cu_seqlens,
                layout.tokens,
                layout.longest,
                layout.longest,
                plain.heads,
                kv_heads,
                width // (plain.heads + 2 * kv_heads),
                plain.scaling,
                plain.causal,
                plain.before,
            )
        found: Texts = layout.derived[key]
        return found


@dataclass(frozen=True)
class CompiledRead:
    """`ReadAttention` by the kernels.

    Attributes:
        plain: what it stands for.
        kernels: that compute.
    """

    plain: ReadAttention
    kernels: Kernels

    @property
    def layout(self) -> Layout:
        """Of the texts."""
        return self.plain.layout

    def forward(self, q: Tensor, kv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """q (B, C), kv (R, 2 K D) keys and values -> (B, C), and what `backward` wants."""
        q, kv = q.contiguous(), kv.contiguous()
        return self.kernels.read(q, kv, self._texts(q.shape[1])), [q, kv]

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gradient of the output (B, C), and what `forward` kept -> those of q and kv."""
        q, kv = kept
        return self.kernels.read_gradient(q, kv, grad.contiguous(), self._texts(q.shape[1]))

    def _texts(self, width: int) -> Texts:
        plain, layout = self.plain, self.plain.layout
        key = ("read", plain.heads, plain.kv_heads, width, plain.scaling)
        if key not in layout.derived:
            layout.derived[key] = Texts(
                torch.arange(len(layout.lengths) + 1, dtype=torch.int32),
                layout.cu_seqlens,
                layout.tokens,
                1,
                layout.longest,
                plain.heads,
                plain.kv_heads or plain.heads,
                width // plain.heads,
                plain.scaling,
                causal=False,
            )
        found: Texts = layout.derived[key]
        return found
