"""Every error that a user of Veneer can meet, in one tree.

    VeneerError                   exit code 1
      UserMistake                 exit code 2: something given to Veneer has to be changed
        ConfigError               a field of a configuration, a flag or a YAML file
        DataError                 a file, a column, a label, a split
          InputError              one of several inputs, by its place
        SourceError               a named data set or a hub data set that can't be had, or is not the expected one
        BaseError                 a base model: not found, not the right one, not supported
        TargetError               a pattern of target_modules / exclude_modules that matches nothing, or only in part
        AdapterError              an adapter folder: every fault of it, listed at once
          UnsupportedOptionError  an option of another tool that Veneer does not compute (refused, never ignored)
        CheckpointError           a checkpoint that does not belong to this run, or is damaged
        MissingExtraError         an optional dependency that has to be installed first
      DriftError                  a stored answer that is not given any more (golden outputs, packed against padded)
      Interrupted                 Ctrl-C or SIGTERM, after everything was saved; exit code 130

A message names the thing, says what was given and what was expected, and ends with the mend. This file knows
nothing of the rest of the package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "AdapterError",
    "BaseError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DriftError",
    "InputError",
    "Interrupted",
    "MissingExtraError",
    "SourceError",
    "TargetError",
    "UnsupportedOptionError",
    "UserMistake",
    "VeneerError",
    "nearest",
]


class VeneerError(Exception):
    """The root of the tree. `exit_code` is what the command line ends with."""

    exit_code: int = 1


class UserMistake(VeneerError):
    """Something that was given to Veneer has to be changed; nothing was lost."""

    exit_code = 2


class ConfigError(UserMistake):
    """A field of a configuration has a value it can't have, or does not exist."""


class DataError(UserMistake):
    """A data file, a column, a label or a split is not usable as it is."""


class InputError(DataError):
    """One of several inputs can't be answered: `place` is which, from 0, and `says` goes on after its name.

    Who gave the inputs may know it by another name, such as the row of a file.
    """

    def __init__(self, place: int, says: str) -> None:
        self.place, self.says = place, says
        super().__init__(f"input {place + 1}{says}")


class SourceError(UserMistake):
    """A data set that is named, not given, can't be had or is not the expected one."""


class BaseError(UserMistake):
    """A base model can't be found, is not the expected one, or can't do what is asked of it."""


class TargetError(UserMistake):
    """A target pattern matches nothing, or matches some layers and not others."""


class AdapterError(UserMistake):
    """An adapter folder can't be used. `faults` holds each fault; the message lists them all."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        self.faults = tuple(faults)
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        super().__init__(message + lines)


class UnsupportedOptionError(AdapterError):
    """An adapter asks for an option that Veneer does not compute."""


class CheckpointError(UserMistake):
    """A checkpoint is damaged or belongs to another run."""


class MissingExtraError(UserMistake):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs an optional dependency. Install it with: pip install 'veneer[{extra}]'"
        )


class DriftError(VeneerError):
    """A computation does not give the answer that was stored for it, or that the plain form of it gives."""


class Interrupted(VeneerError):
    """The run was stopped from outside after its state was saved. The message says how to go on."""

    exit_code = 130


def nearest(name: str, candidates: Iterable[str], *, n: int = 3) -> str:
    """The `n` candidates most like `name`, as a phrase for the end of a message.

    >>> nearest("lora_alhpa", ["r", "lora_alpha", "bias"])
    "Did you mean 'lora_alpha'?"
    >>> nearest("xyz", ["r"])
    ''
    """
    found = difflib.get_close_matches(name, list(candidates), n=n, cutoff=0.5)
    if not found:
        return ""
    return "Did you mean " + " or ".join(repr(match) for match in found) + "?"
