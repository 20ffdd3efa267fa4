"""What the command line calls the settings of which the library's messages speak: by the flags of the verb.

    batch_size                -> --batch-size
    on_missing_label=drop     -> --on-missing-label drop
    quoting=no                -> --set data.quoting=no
    columns={'text': 'body'}  -> --column text=body
    verify=False              -> --no-verify

A key that may come from a file (--config) keeps its name, unless its flag was given. An argument of the library that
is no key goes by its own name, which is the verb's flag for it. This file knows flags; it makes no
sentence and changes none.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Collection, Mapping, Sequence

from veneer.cli.options import Flag

__all__ = ["InFlags"]


class InFlags:
    """A `veneer.naming.Speaker`: one verb and its command line.

    >>> size = Flag("batch-size", "batch_size", int, "", "")
    >>> InFlags([size], ["batch_size", "set"], []).calls("batch_size", None)
    '--batch-size'
    """

    def __init__(
        self,
        flags: Sequence[Flag],
        parameters: Collection[str],
        options: Sequence[str],
        words: Collection[str] = (),
    ) -> None:
        """`flags`: every one that is a key; `parameters`: the options that the verb takes, by their names in Python;
        `options`: the command line; `words`: what the verb takes without a flag, such as OUT.
        """
        self.flags = {
            flag.key: flag for flag in flags if flag.key is not None and flag.parameter in parameters
        }
        self.parameters, self.words = set(parameters), set(words)
        self.has_set = "set" in parameters
        self.options = options
        self.from_file = any(
            option in ("-c", "--config") or option.startswith("--config=") for option in options
        )

    def calls(self, key: str, value: object) -> str | None:
        """The flag; with a value, else --set, where the verb has it."""
        flag = self.flags.get(key)
        group, _, name = key.rpartition(".")
        if group == "call":
            own = f"no_{name}" if value is False else name
            if own in self.parameters:
                return _flag(own, None if value is True else value)
            return name.upper() if name in self.words and value is None else None
        if self.from_file and not (flag is not None and self._given(flag)):
            return None
        if flag is None or flag.name.startswith("no-"):
            return f"--set {key}={_written(value)}" if value is not None and self.has_set else None
        return _flag(flag.name, None if flag.kind is bool else value)

    def takes(self, key: str) -> bool:
        """Whether the verb has a flag for it, or --set for any key."""
        group, _, name = key.rpartition(".")
        if group == "call":
            return bool({name, f"no_{name}"} & self.parameters)
        return key in self.flags or self.has_set

    def _given(self, flag: Flag) -> bool:
        names = (f"--{flag.name}", *((f"-{flag.short}",) if flag.short else ()))
        return any(option in names or option.startswith(f"--{flag.name}=") for option in self.options)


def _flag(name: str, value: object) -> str:
    """A flag with what follows it, once for each part of a mapping.

    >>> _flag("column", {"text": "the body", "label": "kind"}), _flag("no_verify", False)
    ("--column 'text=the body' --column label=kind", '--no-verify')
    """
    dashed = f"--{name.replace('_', '-')}"
    if isinstance(value, Mapping):
        return " ".join(f"{dashed} {shlex.quote(f'{role}={of}')}" for role, of in value.items())
    return dashed if value is None or isinstance(value, bool) else f"{dashed} {_written(value)}"


def _written(value: object) -> str:
    """A value as one writes it on a command line; the library gives texts of Python's with their quotes.

    >>> _written("'mean'"), _written("'two words'"), _written(["query", "value"]), _written(0)
    ('mean', "'two words'", 'query,value', '0')
    """
    if isinstance(value, list | tuple):
        return ",".join(str(one) for one in value)
    text = str(value)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return shlex.quote(str(ast.literal_eval(text)))
    return text
