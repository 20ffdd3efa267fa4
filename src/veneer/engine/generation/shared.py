"""The beginning that prompts share (a system prompt, a template), read once for all of them.

Under causal attention the keys and values of a beginning do not depend on what follows, so those of one text serve
every text that begins so: they are laid into each row of the batch's cache where that row has its tokens, and only what
is left of the batch's rectangle is computed. The numbers are those of a batch without it, but for the order of sums.

This file knows transformers' caches; no tokenizer and no sampling.

Shapes: B texts, P tokens of the beginning, H heads, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.beginnings import common_beginning

__all__ = ["Beginning", "SharedBeginnings"]

LEAST = 16
"""Tokens that a beginning has at least: a shorter one costs more, as a forward of its own, than it saves."""


@dataclass(frozen=True)
class Beginning:
    """What a model has read of a beginning.

    ids      its P tokens
    layers   keys and values of each layer, (1, H, P, D)
    """

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def read(cls, model: nn.Module, ids: Sequence[int]) -> Beginning | None:
        """Read it; None where the model's cache is of another kind than keys and values of each token."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        m: Any = model
        kinds = {type(layer) for layer in DynamicCache(config=m.config).layers}
        if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            return None
        cache = DynamicCache()  # every token of every layer, those outside of a window too
        row = torch.tensor([list(ids)], device=next(model.parameters()).device)
        with torch.inference_mode():
            m.base_model(input_ids=row, past_key_values=cache, use_cache=True)
        whole = [type(layer) is DynamicLayer and layer.get_seq_length() == len(ids) for layer in cache.layers]
        if not whole or not all(whole):
            return None
        pairs: Any = [(layer.keys, layer.values) for layer in cache.layers]
        return cls(tuple(ids), tuple(pairs))

    def first(self, tokens: int) -> Beginning:
        """Its first tokens alone."""
        if tokens == len(self.ids):
            return self
        return Beginning(
            self.ids[:tokens], tuple((k[:, :, :tokens], v[:, :, :tokens]) for k, v in self.layers)
        )

    def lay_into_(self, cache: Any, padding: Tensor) -> None:
        """Fill the first P columns of an empty cache of B rows, of which each begins with (B,) places of padding.

        What lies in a row behind its padding are the first tokens of the beginning; its last ones follow in later
        columns, which are computed.
        """
        columns = torch.arange(len(self.ids), device=padding.device)
        places = (columns - padding.unsqueeze(1)).clamp(min=0)  # (B, P); what padding holds is masked
        for number, pair in enumerate(self.layers):
            keys, values = (part[0].transpose(0, 1)[places].transpose(1, 2) for part in pair)  # (B, H, P, D)
            cache.update(keys, values, number)


class SharedBeginnings:
    """The beginnings of prompts that are answered batch by batch.

    Args:
        model: a causal language model in eval mode, in the state in which it answers.
        prompts: all of them.
        may: whether the model's numbers stay the same with them; asked where there is something to share.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], may: Callable[[], bool] = lambda: True
    ) -> None:
        self._model, self._may = model, may
        self._of_all = common_beginning(prompts) if len(prompts) > 1 else 0
        self._held: Beginning | None = None

    def of(self, batch: Sequence[Sequence[int]]) -> Beginning | None:
        """What the prompts of a batch begin with, the last token of each left out; None: too little, or not allowed."""
        alike = self._of_all
        if alike < LEAST and len(batch) > 1:
            alike = common_beginning(batch)
        alike = min(alike, min(map(len, batch)) - 1)
        if alike < LEAST or not self._may():
            return None
        ids = tuple(int(token) for token in batch[0][:alike])
        if self._held is None or self._held.ids[:alike] != ids:
            self._held = Beginning.read(self._model, ids)
        return None if self._held is None else self._held.first(alike)
