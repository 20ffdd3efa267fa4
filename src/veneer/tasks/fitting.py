"""What a LoRA configuration leaves open, filled in for one base and its head.

Training and `inspect` ask here, so that what is shown before a run is what the run adapts. It knows heads and
`LoraConfig`, and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from veneer.lora import LoraConfig
from veneer.models import Pooling
from veneer.models.heads import unread_modules

__all__ = ["Fitted", "fit_lora"]


@dataclass(frozen=True)
class Fitted:
    """A configuration for one base.

    lora     with the head in `modules_to_save`, where that was left open
    unread   layers that "all-linear" would adapt in vain, now excluded: no output depends on them
    """

    lora: LoraConfig
    unread: tuple[str, ...] = ()


def fit_lora(lora: LoraConfig, model: nn.Module, head: Sequence[str], pooling: Pooling) -> Fitted:
    """Fill in `modules_to_save` and `exclude_modules` where they are None; what was given stays."""
    changes: dict[str, object] = {}
    if lora.modules_to_save is None and head:
        changes["modules_to_save"] = tuple(head)
    unread: tuple[str, ...] = ()
    if lora.target_modules == "all-linear" and lora.exclude_modules is None:
        unread = unread_modules(model, pooling)
    if unread:
        changes["exclude_modules"] = unread
    return Fitted(LoraConfig.from_dict(lora.to_dict() | changes), unread)
