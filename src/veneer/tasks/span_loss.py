"""The loss of spans over texts that lie end to end: a softmax over each text's own tokens.

It is the mean of the cross-entropies of the first and of the last token, as transformers computes it for one text
without padding; over padding too, as transformers does in a padded batch, the loss would depend on what else is in the
batch. This file knows numbers; it knows no text.

Shapes: B texts, T tokens in all; two columns: start and end.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veneer.data.ragged import Ragged
from veneer.engine.packing import Layout

__all__ = ["mean_span_loss", "packed_span_loss"]


def packed_span_loss(logits: Tensor, targets: Tensor, layout: Layout) -> Tensor:
    """Scalar: the mean over B texts.

    Args:
        logits: (T, 2) float32, in packed order.
        targets: (B, 2) int64: places of the first and last token, counted from the text's beginning.
        layout: where each text lies.
    """
    of = layout.text_of_token.unsqueeze(1).expand(-1, 2)  # (T, 2)
    highest = logits.detach().new_full((len(layout.lengths), 2), -torch.inf)
    highest = highest.scatter_reduce(0, of, logits.detach(), "amax")  # (B, 2)
    sums = torch.zeros_like(highest).scatter_add(0, of, (logits - highest.gather(0, of)).exp())
    picked = logits.gather(0, layout.first.unsqueeze(1) + targets)  # (B, 2)
    return (sums.log() + highest - picked).mean()


def mean_span_loss(logits: Ragged, targets: NDArray[np.int64]) -> float:
    """The same from numbers, over any number of texts: logits (L, 2) of each, targets (M, 2)."""
    values = logits.values.astype(np.float64)
    starts = logits.offsets[:-1]
    highest = np.maximum.reduceat(values, starts)  # (M, 2); no text is empty
    sums = np.add.reduceat(np.exp(values - np.repeat(highest, logits.lengths, axis=0)), starts)
    picked = np.take_along_axis(values, starts[:, None] + targets, axis=0)
    return float((np.log(sums) + highest - picked).mean())
