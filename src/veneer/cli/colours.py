"""Colours of a terminal that stand for something: one for each type of entity."""

from __future__ import annotations

__all__ = ["tag_colour"]

_COLOURS = ("bright_red", "bright_green", "bright_yellow", "bright_blue", "bright_magenta", "bright_cyan")


def tag_colour(kind: str) -> str:
    """The colour of a type, the same wherever it is shown.

    >>> tag_colour("person") == tag_colour("person")
    True
    """
    return _COLOURS[sum(map(ord, kind)) % len(_COLOURS)]
