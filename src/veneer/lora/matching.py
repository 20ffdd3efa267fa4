"""How a pattern selects names: the rules of PEFT's adapter_config.json, for names alone.

This file must not know modules, models or torch: texts in, texts out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from veneer.errors import nearest

__all__ = ["block_number", "nearest_names", "pattern_for", "selects", "shortest_suffixes", "under"]

T = TypeVar("T")


def selects(pattern: str, name: str, *, expression: bool = False) -> bool:
    """Whether one entry of a list (the full name or a `.`-bounded suffix), or one expression, selects `name`.

    >>> selects("attn.c_proj", "h.0.attn.c_proj"), selects("c_proj", "h.0.attn.xc_proj")
    (True, False)
    >>> selects(r".*c_(attn|proj)", "h.0.attn.c_proj", expression=True)
    True
    """
    if expression:
        return re.fullmatch(pattern, name) is not None
    return name == pattern or name.endswith("." + pattern)


def under(name: str, roots: Iterable[str]) -> bool:
    """Whether `name` is one of `roots` or lies inside one of them."""
    return any(name == root or name.startswith(root + ".") for root in roots)


def block_number(name: str, layers_pattern: Sequence[str] = ()) -> int | None:
    """The number of the block that a module is in: the first number after a name (of the given ones).

    PEFT finds no number in `blocks.0.dense`, where the list of blocks is not inside another module; here it is 0.

    >>> block_number("bert.encoder.layer.3.mlp.experts.7.dense"), block_number("classifier.dense")
    (3, None)
    >>> block_number("h.5.attn.c_attn", ["h"])
    5
    """
    if not layers_pattern:
        found = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", name) or re.match(
            r"[^.]*\.(?P<number>\d+)\.", name
        )
        return int(found["number"]) if found else None
    for pattern in layers_pattern:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", name):
            return int(found["number"])
    return None


def pattern_for(patterns: Mapping[str, T], name: str) -> str | None:
    """The first key of `rank_pattern` / `alpha_pattern` whose expression matches the end of `name`, or None.

    >>> pattern_for({"attn.c_attn": 4, "c_proj": 2}, "h.0.mlp.c_proj")
    'c_proj'
    """
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", name):
            return pattern
    return None


def nearest_names(pattern: str, names: Iterable[str]) -> str:
    """A phrase with the suffixes of `names` that are most like `pattern`, or some of them.

    >>> nearest_names("c_atn", ["h.0.attn.c_attn", "h.0.attn.c_proj"])
    "Did you mean 'c_attn'?"
    """
    depth = pattern.count(".") + 1
    suffixes = list(dict.fromkeys(".".join(name.split(".")[-depth:]) for name in names))
    if not suffixes:
        return "The model has no layer that can be adapted."
    shown = ", ".join(map(repr, suffixes[:8])) + (", ..." if len(suffixes) > 8 else "")
    return nearest(pattern, suffixes) or f"The names here are: {shown}."


def shortest_suffixes(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
    """The shortest list of suffixes that selects every name of `chosen` and none of `others`, sorted.

    >>> shortest_suffixes(["h.0.attn.c_attn", "h.1.attn.c_attn"], ["h.0.attn", "h.0.mlp.c_proj"])
    ['c_attn']
    >>> shortest_suffixes(["h.1.attn.c_attn"], ["h.0.attn.c_attn"])
    ['1.attn.c_attn']
    """
    taken = {suffix for name in others for suffix in _suffixes(name)}
    found = {next((s for s in _suffixes(name) if s not in taken), name) for name in chosen}
    return sorted(found)


def _suffixes(name: str) -> list[str]:
    """The `.`-bounded suffixes of a name, shortest first, the name itself last."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
