"""Texts that are being continued together: one forward a token, over what the cache does not hold yet.

The cache and the attention are transformers'. Texts of different length lie padded on the left, under a mask and with
positions of their own; a text that is finished leaves the batch and its cache. This file knows transformers' calling
conventions; no tokenizer and no sampling.

Shapes: B texts, L tokens of the longest, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.generation.shared import LEAST, Beginning

__all__ = ["Memory", "RunningBatch", "padding_fault", "sharing_fault"]

# fp32: sums in another order; half precision: rounding of a logit, several layers deep
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.15, torch.float16: 0.05}


class RunningBatch:
    """B texts, their cache, and the logits of the token after each.

    Attributes:
        logits: (B, V) of the next token, float32.
    """

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], shared: Beginning | None = None
    ) -> None:
        """Read the prompts, none of them empty; `model` is a causal language model in eval mode.

        Args:
            model: as above.
            prompts: token ids of B texts.
            shared: what the model has read of their common beginning, shorter than each of them.
        """
        from transformers import DynamicCache

        self._model: Any = model
        self._takes = set(inspect.signature(self._model.forward).parameters)
        device = next(model.parameters()).device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        inside = torch.arange(longest, device=device) >= (longest - lengths).unsqueeze(1)  # (B, L)
        # A mask of ones too: without one transformers warns of tokens that look like padding.
        self._mask = inside.long()
        self._next = lengths  # (B,) position of the token that comes next
        with torch.inference_mode():
            self._cache = DynamicCache(config=self._model.config)
            known = 0
            if shared is not None:
                known = len(shared.ids)
                shared.lay_into_(self._cache, longest - lengths)
            positions = (inside.cumsum(1) - 1).clamp(min=0)
            self.logits = self._forward(ids[:, known:].to(device), positions[:, known:])

    def keep(self, places: Sequence[int]) -> None:
        """Let the other texts go."""
        with torch.inference_mode():
            rows = torch.tensor(places, device=self._next.device)
            self._cache.batch_select_indices(rows)
            self._next = self._next[rows]
            self.logits = self.logits[rows]
            self._mask = self._mask[rows]

    def advance(self, tokens: Sequence[int]) -> None:
        """Put one token behind each text and compute the logits after it."""
        self.extend([[token] for token in tokens])

    def extend(self, more: Sequence[Sequence[int]]) -> None:
        """Put as many tokens behind each text and compute the logits after the last."""
        with torch.inference_mode():
            ids = torch.tensor(more, device=self._next.device)  # (B, n)
            self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
            positions = self._next.unsqueeze(1) + torch.arange(ids.shape[1], device=ids.device)
            self._next = self._next + ids.shape[1]
            self.logits = self._forward(ids, positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        given: dict[str, Any] = {"attention_mask": self._mask, "use_cache": True}
        if "position_ids" in self._takes:
            given["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        out = self._model(input_ids=ids, past_key_values=self._cache, **given)
        return out.logits[:, -1].float()


class Memory:
    """What a model has read of one conversation, so that the next turn reads only what is new.

    It belongs to one model in one state: with another adapter, or none, a conversation needs another memory.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._running: RunningBatch | None = None

    def __len__(self) -> int:
        """Tokens that are held."""
        return len(self._ids) if self._running is not None else 0

    def read(self, model: nn.Module, prompt: Sequence[int]) -> RunningBatch:
        """A batch that has read `prompt`: the one held where the prompt goes on from it, else a new one."""
        held, running = len(self._ids), self._running
        self._running = None  # a forward that is broken off (Ctrl-C) leaves nothing behind
        if running is None or held >= len(prompt) or list(prompt[:held]) != self._ids:
            running = RunningBatch(model, [prompt])
        else:
            running.extend([prompt[held:]])
        self._ids, self._running = list(prompt), running
        return running

    def advance(self, running: RunningBatch, token: int) -> None:
        """`running.advance` by one token of this conversation."""
        self._running = None
        running.advance([token])
        self._ids.append(token)
        self._running = running


def padding_fault(model: nn.Module) -> str | None:
    """Continue two short texts together, and compare with each alone and without a cache: None where they agree.

    Returns:
        Why texts of different lengths can't share a batch on this model, in words.
    """
    return _fault(model, [_made_up(model, n) for n in (3, 8)], "in a batch")


def sharing_fault(model: nn.Module) -> str | None:
    """The same for two texts of which the common beginning was read once.

    Returns:
        Why each text of a batch is read whole on this model, in words.
    """
    begin = _made_up(model, LEAST)
    # Texts of one length, so that models which padding changes can share as well.
    same_length = [[*begin, *more] for more in ([1, 2], [3, 1])]
    shared = Beginning.read(model, begin)
    if shared is None:
        return "its cache does not hold keys and values of each token"
    return _fault(model, same_length, "behind a common beginning", shared)


def _made_up(model: nn.Module, n: int) -> list[int]:
    """n tokens of no meaning."""
    config: Any = model.config
    return [(5 * i + 3 * n + 1) % int(config.get_text_config().vocab_size) for i in range(n)]


def _fault(
    model: nn.Module, texts: list[list[int]], where: str, shared: Beginning | None = None
) -> str | None:
    """How far off two texts are that are continued together, where that is too far."""
    more = [texts[1][1], texts[0][2]]
    together = RunningBatch(model, texts, shared)
    found = [together.logits]
    together.advance(more)
    found.append(together.logits)
    alone = [
        _plain_logits(model, texts),
        _plain_logits(model, [[*t, m] for t, m in zip(texts, more, strict=True)]),
    ]
    off = max(
        float((f - a).abs().max() / a.abs().max().clamp(min=1e-6)) for f, a in zip(found, alone, strict=True)
    )
    limit = _TOLERANCE.get(next(model.parameters()).dtype, 1e-3)
    if off <= limit:
        return None
    return f"{where} its logits differ by {off:.1e} of the largest from those of each text alone (limit {limit:.0e})"


def _plain_logits(model: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
    """(B, V) after the last token of each text, one by one, without a cache."""
    m: Any = model
    with torch.inference_mode():
        rows = [torch.tensor([text], device=next(model.parameters()).device) for text in texts]
        return torch.cat([m(input_ids=ids, use_cache=False).logits[:, -1].float() for ids in rows])
