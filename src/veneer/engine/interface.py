"""The packed attention as an attention implementation of transformers, under the name "veneer_packed".

transformers asks two interfaces for every model that dispatches through them: one for the attention function, one for
the mask. Ours returns no mask tensor but a `PackedMask`: the layout of the row and the pattern of this kind of layer
(causal, sliding window, bidirectional), which transformers hands through to the attention function untouched. The
pattern is read off the mask function that the model itself asks for, so that no family is special here.

This file knows transformers' two interfaces; it knows no particular model and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.attention import AttentionPattern, packed_attention
from veneer.engine.packing import Layout
from veneer.errors import VeneerError

__all__ = ["NAME", "NotPackableError", "register", "running_packed"]

NAME = "veneer_packed"

_layout: ContextVar[Layout | None] = ContextVar("veneer_layout", default=None)


class NotPackableError(VeneerError):
    """A model computes something that the packed form does not have; the engine then runs it padded."""


@dataclass(frozen=True)
class PackedMask:
    """What stands in for a mask tensor: the layout of the row and what a token sees of its own text."""

    layout: Layout
    pattern: AttentionPattern


@contextmanager
def running_packed(layout: Layout) -> Iterator[None]:
    """Inside it, models that run under `NAME` take their row as texts laid out like this."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def register() -> None:
    """Make `NAME` known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(
    batch_size: int, q_length: int, kv_length: int, mask_function: Callable[..., Any], **_: Any
) -> PackedMask:
    """transformers' mask interface: read the pattern off the mask function, on the longest text of the row."""
    layout = _layout.get()
    if layout is None or batch_size != 1 or q_length != kv_length or q_length != layout.tokens:
        raise NotPackableError(f"{NAME} was asked for a mask outside of a packed row")
    device = layout.cu_seqlens.device
    return PackedMask(layout, _pattern(mask_function, layout, device))


def _pattern(mask_function: Callable[..., Any], layout: Layout, device: torch.device) -> AttentionPattern:
    """What the first, the middle and the last token of the longest text see, as one pattern."""
    length = layout.lengths[-1]
    start = layout.tokens - length
    rows = torch.tensor(sorted({0, length // 2, length - 1}), device=device)
    keys = torch.arange(length, device=device)
    zero = torch.zeros((), dtype=torch.long, device=device)
    seen = mask_function(zero, zero, (rows + start).unsqueeze(1), (keys + start).unsqueeze(0))
    seen = torch.as_tensor(seen, device=device).expand(len(rows), length)
    distance = keys.unsqueeze(0) - rows.unsqueeze(1)
    before = int((-distance[seen]).max())
    after = int(distance[seen].max())
    # The widest distance seen is a limit only where a token could have seen further.
    pattern = AttentionPattern(
        before=before if before < length - 1 else None, after=after if after < length - 1 else None
    )
    if length == 1:
        return AttentionPattern()
    low = -length if pattern.before is None else -pattern.before
    high = length if pattern.after is None else pattern.after
    if not torch.equal(seen, (distance >= low) & (distance <= high)):
        raise NotPackableError(
            "the model's attention mask is neither causal, nor bidirectional, nor a sliding window"
        )
    return pattern


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D)."""
    if not isinstance(attention_mask, PackedMask):
        raise NotPackableError(
            f"{type(module).__name__} does not hand its mask through to the attention function"
        )
    for option in ("position_bias", "s_aux", "head_mask"):
        if kwargs.get(option) is not None:
            raise NotPackableError(
                f"{type(module).__name__} uses {option}, which packed attention does not compute"
            )
    out = packed_attention(
        query[0],
        key[0],
        value[0],
        attention_mask.layout,
        attention_mask.pattern,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        dropout=dropout,
    )
    return out.unsqueeze(0), None
