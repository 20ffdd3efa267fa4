"""Run a model that is written out here, not taken from transformers, over a packed batch.

Such a model has one seam: `hidden_states(input_ids, position_ids, attend=...)`, where `attend` computes
attention. Packed, the batch is one row, and `attend` keeps its texts apart; padded, it is B rows and the
model's own attention. `gpt_program` says which module of GPT is what, as `veneer.engine.families` does for
transformers' models. This file knows that seam and no task.

Shapes: B texts, T tokens in all, L the longest text, H heads, D head size, C hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from veneer.engine.activations import activation_of
from veneer.engine.attention import AttentionPattern, packed_attention
from veneer.engine.blocks import Block, Program
from veneer.engine.linears import LinearGroup
from veneer.engine.packing import Layout, PackedBatch

__all__ = ["WrittenOut", "WrittenOutRunner", "gpt_program", "packed_attend"]

_CAUSAL = AttentionPattern(after=0)
_EVERYTHING = AttentionPattern()


class WrittenOut(Protocol):
    """A model with the seam."""

    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor | None = None, *, attend: Any = ...
    ) -> Tensor:
        """(B, T) int64 ids -> (B, T, C)."""
        ...


def packed_attend(layout: Layout) -> Callable[..., Tensor]:
    """Attention inside each text of a packed row, for a model's `attend`: q, k, v (1, H, T, D) -> the same shape."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
        pattern = _CAUSAL if causal else _EVERYTHING
        scaling = 1.0 / math.sqrt(q.shape[-1])
        out = packed_attention(q[0], k[0], v[0], layout, pattern, scaling=scaling)  # (T, H, D)
        return out.transpose(0, 1).unsqueeze(0)

    return attend


@dataclass(frozen=True)
class WrittenOutRunner:
    """How a written-out model is run; stands where `Runner` stands for models of transformers.

    Attributes:
        model: with the seam.
        mode: "packed" or "padded".
        program: the engine's own form of the model (`gpt_program`), used where it can be; packed only.
    """

    model: WrittenOut
    mode: Literal["packed", "padded"] = "packed"
    program: Program | None = None

    def hidden_states(self, batch: PackedBatch, reads: Tensor | None = None) -> Tensor:
        """(T, C): the hidden state of each token, in packed order; (S, C) of the tokens in `reads` (S,) alone."""
        if self.mode == "packed" and self.program is not None and self.program.ready():
            return self.program(batch, reads)
        hidden = self._packed(batch) if self.mode == "packed" else self._padded(batch)
        return hidden if reads is None else hidden.index_select(0, reads)

    def _packed(self, batch: PackedBatch) -> Tensor:
        attend = packed_attend(batch.layout)
        ids, positions = batch.input_ids.unsqueeze(0), batch.position_ids.unsqueeze(0)
        return self.model.hidden_states(ids, positions, attend=attend)[0]

    def _padded(self, batch: PackedBatch) -> Tensor:
        lengths = batch.layout.cu_seqlens.diff().long()  # (B,)
        inside = torch.arange(batch.layout.longest, device=lengths.device) < lengths.unsqueeze(1)  # (B, L)
        ids = torch.zeros(inside.shape, dtype=torch.int64, device=lengths.device)
        ids[inside] = batch.input_ids
        return self.model.hidden_states(ids)[inside]  # causal: what stands after a text is not seen by it


def gpt_program(gpt: Any) -> Program:
    """The engine's own form of `veneer.models.gpt.GPT`: query, key and value as one product, only what is read."""
    activation = activation_of("gelu_pytorch_tanh")
    assert activation is not None

    def block(module: Any) -> Block:
        att, layers = module.att, module.ff.layers
        return Block(
            qkv=LinearGroup((att, "W_query"), (att, "W_key"), (att, "W_value")),
            out=LinearGroup((att, "out_proj")),
            up=LinearGroup((layers, "0")),
            down=LinearGroup((layers, "2")),
            norm_1=(module, "norm1"),
            norm_2=(module, "norm2"),
            activation=activation,
            heads=att.n_heads,
            scaling=1.0 / math.sqrt(gpt.config.emb_dim // att.n_heads),
            causal=True,
            norm_first=True,
        )

    def embed(batch: PackedBatch) -> Tensor:
        x: Tensor = gpt.embed(batch.input_ids, batch.position_ids)
        return x

    return Program(embed, [block(module) for module in gpt.trf_blocks], (gpt, "final_norm"))
