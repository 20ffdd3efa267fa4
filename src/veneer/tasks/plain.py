"""A classifier as plain padded computation: token ids and mask in, logits out, one module of torch.

For models that leave Veneer (merged, exported) and for checking them: nothing here is packed, cached or adapted.
This file must not know adapters or files.

Shapes: B texts, L tokens of the longest, C hidden size, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.models.heads import Pooling, head_logits, native_pooling

__all__ = ["PlainClassifier", "padded", "plain_logits"]


class PlainClassifier(nn.Module):
    """A transformers classifier read by a stated pooling, which need not be its class's own."""

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Ids and mask (B, L) int64, padded on the right, and token types where there are any -> logits (B, K)."""
        m: Any = self.model
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = m.base_model(input_ids=input_ids, attention_mask=attention_mask, **types)[0]  # (B, L, C)
        return head_logits(self.model, _pooled(states, attention_mask, self.pooling), self.pooling)


def _pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """(B, C)."""
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        last = (mask.sum(dim=1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1)
    inside = mask.unsqueeze(-1).to(states.dtype)
    return (states * inside).sum(dim=1) / inside.sum(dim=1)


def padded(texts: Sequence[Sequence[int]], padding_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of B texts -> ids and mask (B, L), int64, padded on the right."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), padding_id)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(text)
        mask[row, : len(text)] = 1
    return ids, mask


def plain_logits(model: nn.Module, pooling: Pooling, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """(B, K): by transformers' own forward where the pooling is its own, else by `PlainClassifier`."""
    m: Any = model
    ids, mask = padded(texts, m.config.pad_token_id or 0)
    with torch.inference_mode():
        if native_pooling(model) == pooling:
            logits = m(input_ids=ids, attention_mask=mask).logits
        else:
            logits = PlainClassifier(model, pooling)(ids, mask)
    found: NDArray[np.float32] = logits.float().numpy()
    return found
