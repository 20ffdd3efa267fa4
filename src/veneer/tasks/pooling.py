"""One state for each text out of the states of its tokens, and what a folder of PEFT tells of the head above it.

This file knows layouts and heads; it knows no label and no loss.

Shapes: B texts, T tokens, C hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veneer.adapter import AdapterFolder
from veneer.engine.packing import Layout
from veneer.errors import AdapterError
from veneer.models.heads import Pooling

__all__ = ["head_outputs", "pool"]


def pool(states: Tensor, layout: Layout, pooling: Pooling) -> Tensor:
    """The states that a task reads -> (B, C) one state per text, float32.

    "first" and "last" have picked them; "mean" takes the mean over the (T, C) states of each text's tokens (special
    tokens included), as sentence-transformers has it.
    """
    if pooling != "mean":
        return states.float()
    sums = torch.zeros(len(layout.lengths), states.shape[1], device=states.device)
    sums = sums.index_add(0, layout.text_of_token, states.float())
    return sums / layout.cu_seqlens.diff().unsqueeze(1)


def head_outputs(folder: AdapterFolder) -> int:
    """How many outputs the head of a folder of PEFT has.

    Raises:
        AdapterError: it holds none.
    """
    ends = (".score.weight", ".classifier.weight", ".classifier.out_proj.weight", ".qa_outputs.weight")
    for name, tensor in folder.tensors.items():
        if name.endswith(ends):
            return int(tensor.shape[0])
    raise AdapterError(
        f"{folder.path} holds no classification head ({' or '.join(end[1:] for end in ends[:3])}), so it can't answer. "
        "It was saved without modules_to_save; train it again with the head named there."
    )
