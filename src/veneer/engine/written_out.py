"""Run a model that is written out here, not taken from transformers, over a packed batch.

Such a model has one seam: `hidden_states(input_ids, position_ids, attend=...)`, where `attend` computes
attention. Packed, the batch is one row, and `attend` keeps its texts apart; padded, it is B rows and the
model's own attention. This file knows that seam, no particular model and no task.

Shapes: B texts, T tokens in all, L the longest text, H heads, D head size, C hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from veneer.engine.attention import AttentionPattern, packed_attention
from veneer.engine.packing import Layout, PackedBatch

__all__ = ["WrittenOut", "WrittenOutRunner", "packed_attend"]

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
    """How a written-out model is run; stands where `Runner` stands for models of transformers."""

    model: WrittenOut
    mode: Literal["packed", "padded"] = "packed"

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """(T, C): the hidden state of each token, in packed order."""
        if self.mode == "packed":
            attend = packed_attend(batch.layout)
            ids, positions = batch.input_ids.unsqueeze(0), batch.position_ids.unsqueeze(0)
            return self.model.hidden_states(ids, positions, attend=attend)[0]
        lengths = batch.layout.cu_seqlens.diff().long()  # (B,)
        inside = torch.arange(batch.layout.longest, device=lengths.device) < lengths.unsqueeze(1)  # (B, L)
        ids = torch.zeros(inside.shape, dtype=torch.int64, device=lengths.device)
        ids[inside] = batch.input_ids
        return self.model.hidden_states(ids)[inside]  # causal: what stands after a text is not seen by it
