"""A pattern that matches in some blocks and not in others: found, and named.

Blocks are the children of an `nn.ModuleList` that are of one type: where one has the module, the others are
expected to have it. A pattern that says which blocks it means (a number in it, or `layers_to_transform`) is
held to exactly those. This file must not know LoRA layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from veneer.errors import TargetError
from veneer.lora.config import ALL_LINEAR, LoraConfig
from veneer.lora.matching import block_number
from veneer.naming import setting

__all__ = ["check_blocks"]


def check_blocks(
    config: LoraConfig, pattern: str, found: Sequence[str], modules: Mapping[str, nn.Module]
) -> None:
    """Raise TargetError where `pattern`, which selects `found`, leaves out blocks without a reason given."""
    if not found or pattern.lower() == ALL_LINEAR:
        return
    if config.layers_to_transform is not None and not isinstance(config.target_modules, str):
        _check_chosen_blocks(config, pattern, found)
    elif not _names_blocks(pattern, expression=isinstance(config.target_modules, str)):
        _check_all_blocks(pattern, found, modules)


def _names_blocks(pattern: str, *, expression: bool) -> bool:
    """Whether the pattern itself says which blocks it means."""
    if expression:
        return re.search(r"\d|\\d", pattern) is not None
    return any(part.isdigit() for part in pattern.split("."))


def _check_chosen_blocks(config: LoraConfig, pattern: str, found: Sequence[str]) -> None:
    layers = config.layers_to_transform
    assert layers is not None
    lists = config.layers_pattern or ()
    lists = (lists,) if isinstance(lists, str) else lists
    there = {block_number(name, lists) for name in found}
    missing = [number for number in ((layers,) if isinstance(layers, int) else layers) if number not in there]
    if missing and not set(found) <= {pattern}:
        raise TargetError(
            f"layers_to_transform: block {_numbers(missing)} has no module {pattern!r}; it is found in block "
            f"{_numbers(sorted(n for n in there if n is not None))}. Correct layers_to_transform or the "
            "pattern."
        )


def _check_all_blocks(pattern: str, found: Sequence[str], modules: Mapping[str, nn.Module]) -> None:
    for container, module in modules.items():
        if not isinstance(module, nn.ModuleList):
            continue
        prefix = f"{container}." if container else ""
        inside = {name.removeprefix(prefix).split(".")[0] for name in found if name.startswith(prefix)}
        kinds: dict[type, list[str]] = {}
        for number, block in module._modules.items():
            kinds.setdefault(type(block), []).append(number)
        for kind, numbers in kinds.items():
            missing = [int(number) for number in numbers if number not in inside]
            present = [int(number) for number in numbers if number in inside]
            if present and missing:
                raise TargetError(
                    f"{setting('lora.target_modules')}: {pattern!r} matches in block {_numbers(present)} of "
                    f"{container} and "
                    f"not in block {_numbers(missing)}, which are {kind.__name__} too. If that is meant, say "
                    f"so with {setting('lora.layers_to_transform', present)} or the full names."
                )


def _numbers(numbers: Sequence[int]) -> str:
    """Numbers with runs drawn together: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
