"""Fused query-key-value projections: which layers are cut into slices, and where.

Known are layers whose output is q, k and v one after another, each as wide as the input: `c_attn` (GPT-2) and
`Wqkv` (ModernBERT). Others interleave them by head (`query_key_value` of GPT-NeoX and Falcon) or give keys
fewer heads (`qkv_proj` of Phi-3); a third of their output is not one of the three, and they are refused.
"""

from __future__ import annotations

from veneer.errors import TargetError
from veneer.lora.config import LoraConfig, Slice
from veneer.naming import setting

__all__ = ["SLICE_COUNT", "check_slices_used", "slices_of"]

SLICE_COUNT = 3
_ORDER: tuple[Slice, ...] = ("q", "k", "v")
_IN_ORDER = ("c_attn", "Wqkv")
_OTHERS = ("query_key_value", "qkv_proj", "qkv", "in_proj", "W_pack", "Wqkv_proj")


def slices_of(config: LoraConfig, name: str, n: int, m: int) -> tuple[int, ...]:
    """The numbers of the slices of module `name` (n -> m) that get a pair each; empty for an ordinary layer.

    Raises:
        TargetError: the layer is fused in a way that can't be cut into q, k and v.
    """
    if config.qkv_slices is None:
        return ()
    last = name.rpartition(".")[2]
    if last in _OTHERS or (last in _IN_ORDER and m != SLICE_COUNT * n):
        raise TargetError(
            f"qkv_slices={list(config.qkv_slices)!r}: {name} ({n} -> {m}) does not hold query, key and value "
            f"as three equal blocks. Supported are {' and '.join(_IN_ORDER)} with {SLICE_COUNT} x n outputs. "
            "Leave qkv_slices out: an ordinary adapter covers all three."
        )
    if last not in _IN_ORDER:
        return ()
    return tuple(i for i, part in enumerate(_ORDER) if part in config.qkv_slices)


def check_slices_used(config: LoraConfig, sliced: int) -> None:
    """Raise TargetError where qkv_slices was given and none of the adapted layers is fused."""
    if config.qkv_slices is not None and sliced == 0:
        raise TargetError(
            f"qkv_slices={list(config.qkv_slices)!r} cuts fused layers ({', '.join(_IN_ORDER)}), and none is "
            f"among the adapted ones. Add one to {setting('lora.target_modules')}; where query, key and value "
            "are layers of "
            "their own, leave qkv_slices out and name the ones to adapt."
        )
