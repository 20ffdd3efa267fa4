"""What a message calls a setting: its key in a configuration, or the name that whoever is told the message knows.

    setting("data.max_rows")                   max_rows                 --max-rows
    setting("data.on_missing_label", "drop")   on_missing_label=drop    --on-missing-label drop
    setting("data.quoting", "no")              quoting=no               --set data.quoting=no
    setting("call.verify", False)              verify=False             --no-verify

The right column is the command line's, which says so with `speaking` (`veneer.cli.naming`); the left one is Python's.
A message that names a setting asks here, so that nobody has to find keys in a finished sentence. This file knows no
setting, no flag and nothing of the rest of the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

__all__ = ["Speaker", "settable", "setting", "speaking"]


class Speaker(Protocol):
    """Who shows messages to a person."""

    def calls(self, key: str, value: object) -> str | None:
        """What the setting is called there, with a value if there is one; None: as in Python."""
        ...

    def takes(self, key: str) -> bool:
        """Whether it can be given there."""
        ...


_speakers: list[Speaker] = []
"""The innermost last. Of the whole process, for threads tell messages too."""


@contextlib.contextmanager
def speaking(speaker: Speaker) -> Iterator[None]:
    """Messages that are made meanwhile name settings as `speaker` does."""
    _speakers.append(speaker)
    try:
        yield
    finally:
        _speakers.remove(speaker)


def setting(key: str, value: object = None, *, plain: str | None = None) -> str:
    """A setting as a part of a sentence.

    Args:
        key: its dotted place in a training configuration, such as "data.max_rows"; an argument of another function
            with that one's name, such as "combine.heads", or, where many have it, with "call", such as "call.out".
        value: what to give it, where the sentence advises that.
        plain: what it is called in Python; default: the last part of the key (of options all of it), and
            "=value".

    >>> setting("data.max_rows"), setting("lora.r", 8), setting("options.cut", "left")
    ('max_rows', 'r=8', 'options.cut=left')
    """
    name = _speakers[-1].calls(key, value) if _speakers else None
    if name is not None:
        return name
    if plain is not None:
        return plain
    group, _, last = key.rpartition(".")
    bare = key if group == "options" else last
    return bare if value is None else f"{bare}={value}"


def settable(key: str) -> bool:
    """Whether it makes sense to advise this setting: in Python always, at a command line where the verb takes it."""
    return not _speakers or _speakers[-1].takes(key)
