"""Which token comes next: the settings of an answer, and what they make of the logits.

The order is transformers': repetition penalty, temperature, top-k, top-p. Every text draws from random numbers of its
own, so that its answer does not depend on what else is in the batch. This file knows logits and no model.

Shapes: B texts, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pydantic
import torch
from torch import Tensor

from veneer.strict import StrictModel

__all__ = [
    "Sampling",
    "choose",
    "cut_to_top_k",
    "cut_to_top_p",
    "penalise_repetition",
    "processed",
    "random_of",
]

_NEVER = float("-inf")


class Sampling(StrictModel):
    """How an answer is made.

    max_new_tokens      tokens of an answer at most
    temperature         0: always the most likely token (greedy); 1: as the model says; higher: more surprising
    top_k               draw from the k most likely tokens only; needs a temperature above 0
    top_p               draw from the most likely tokens that together have this probability (Holtzman et al. 2020,
                        section 3.1); needs a temperature above 0
    repetition_penalty  logits of tokens that stand in the text already are divided by this where positive, multiplied
                        where negative (Keskar et al. 2019, section 4.1); 1: not at all
    stop                an answer ends before any of these texts
    stop_token_ids      an answer ends before any of these tokens, beside the model's own end
    seed                of the draws
    """

    max_new_tokens: int = pydantic.Field(default=128, ge=1)
    temperature: float = pydantic.Field(default=0.0, ge=0)
    top_k: int | None = pydantic.Field(default=None, ge=1)
    top_p: float | None = pydantic.Field(default=None, gt=0, le=1)
    repetition_penalty: float = pydantic.Field(default=1.0, gt=0)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)

    @pydantic.field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if "" in given:
            raise ValueError("an empty text stands everywhere, so that no answer could begin; leave it out")
        return given

    @pydantic.model_validator(mode="after")
    def _draws_where_it_cuts(self) -> Self:
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and self.temperature == 0:
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no effect at temperature 0, where the most likely token is "
                    "always taken: give a temperature as well, such as 1, or leave it out."
                )
        return self

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


def random_of(seed: int, row: int) -> np.random.Generator:
    """The random numbers of one text."""
    return np.random.default_rng([seed, row])


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """(B, V) logits with those of `seen` tokens (B, V, bool) made less likely by `penalty` >= 1."""
    less = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, less, logits)


def cut_to_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) logits, -inf where k others are larger; ties with the k-th stay."""
    edge = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < edge, _NEVER)


def cut_to_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) logits, -inf outside of the smallest set of tokens that have the probability `p` together; one stays."""
    rising, places = logits.sort(dim=-1)
    out = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    out[..., -1] = False
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, places, out), _NEVER)


def processed(logits: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    """(B, V) float32 logits after everything that `sampling` asks for; `seen` is needed for the penalty."""
    logits = logits.float()
    if sampling.repetition_penalty != 1.0 and seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.greedy:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = cut_to_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = cut_to_top_p(logits, sampling.top_p)
    return logits


def choose(
    logits: Tensor, sampling: Sampling, randoms: Sequence[np.random.Generator], seen: Tensor | None = None
) -> list[int]:
    """The next token of each text.

    Args:
        logits: (B, V).
        sampling: the settings.
        randoms: B sources of random numbers; each gives one number where something is drawn.
        seen: (B, V) bool, the tokens that stand in each text, for the repetition penalty.
    """
    logits = processed(logits, sampling, seen)
    if sampling.greedy:
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    chances = logits.softmax(dim=-1).cpu().numpy().astype(np.float64)
    tokens = []
    for row, random in zip(chances, randoms, strict=True):
        sums = row.cumsum()
        # the first token whose sum passes the draw: one without probability is never it
        tokens.append(int(sums.searchsorted(random.random() * sums[-1], side="right")))
    return tokens
