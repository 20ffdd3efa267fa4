"""What a LoRA configuration leaves open, filled in for one base and its head.

Training and `inspect` ask here, so that what is shown before a run is what the run adapts. It knows heads and
`LoraConfig`, and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veneer.lora import LoraConfig

__all__ = ["Fitted", "fit_lora"]


@dataclass(frozen=True)
class Fitted:
    """A configuration for one base.

    lora     with the head in `modules_to_save`, where that was left open
    unread   layers that "all-linear" would adapt in vain, now excluded: no output depends on them
    """

    lora: LoraConfig
    unread: tuple[str, ...] = ()


def fit_lora(lora: LoraConfig, head: Sequence[str], unread: Sequence[str]) -> Fitted:
    """Fill in `modules_to_save` (the head) and `exclude_modules` (what no output depends on) where they are None; what
    was given stays.
    """
    changes: dict[str, object] = {}
    if lora.modules_to_save is None and head:
        changes["modules_to_save"] = tuple(head)
    left_out: tuple[str, ...] = ()
    if lora.target_modules == "all-linear" and lora.exclude_modules is None:
        left_out = tuple(unread)
    if left_out:
        changes["exclude_modules"] = left_out
    return Fitted(LoraConfig.from_dict(lora.to_dict() | changes), left_out)
