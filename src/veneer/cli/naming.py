"""What the library calls by its key in a configuration, said as the flag that a person at the command line has for it.

    'batch_size' is 0                -> --batch-size is 0
    on_missing_label=drop            -> --on-missing-label drop
    max_length is 3, of which ...    -> --max-length is 3, of which ...

A key that may come from a file (--config) keeps its name. This file knows flags and sentences; it raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from veneer.cli.options import Flag

__all__ = ["in_flags"]

_MENDS = {  # what errors advise: for a verb that has the flag, and for one that has not
    r"on_missing_label=drop": ("on_missing_label", "--on-missing-label drop"),
    r"on_empty_text=drop": ("set", "--set data.on_empty_text=drop"),
    r"quoting=no\b": ("set", "--set data.quoting=no"),
}
_WITHOUT = (
    (r"Save the file as UTF-8, or say its encoding with --encoding \([^)]*\)", "Save the file as UTF-8"),
    (r"Say its encoding with --encoding", "Save it as UTF-8"),
    (r"Check the delimiter \(--delimiter\), or give", "Give"),
    (r"leave them out with \w+=drop", "remove them"),
    (r"Mend them, or leave them empty and give on_missing_label=drop", "Mend or remove them"),
    (
        r"double it if it is part of the text, or read the file with quoting off \(quoting=no\) if its quotes are "
        "only characters",
        "or double it if it is part of the text",
    ),
)


def in_flags(message: str, flags: Sequence[Flag], parameters: Collection[str], options: Sequence[str]) -> str:
    """A message of the library with flags in place of keys.

    Args:
        message: what an error or a warning says.
        flags: every flag that is a key.
        parameters: what the verb takes, by its names in Python; other flags are not named.
        options: the command line.

    >>> text = Flag("batch-size", "batch_size", int, "", "")
    >>> in_flags("the command line: 'batch_size' is 0: at least 1.", [text], ["batch_size"], ["--batch-size", "0"])
    'the command line: --batch-size is 0: at least 1.'
    """
    for mend, (parameter, flag) in _MENDS.items():
        if parameter in parameters:
            message = re.sub(mend, flag, message)
    for sentence, without in _WITHOUT if "encoding" not in parameters else ():
        message = re.sub(sentence, without, message)
    from_file = any(option in ("-c", "--config") or option.startswith("--config=") for option in options)
    for flag_ in flags:
        if flag_.key is None or flag_.parameter not in parameters or flag_.name.startswith("no-"):
            continue
        if from_file and not _given(flag_, options):
            continue
        message = _named(message, flag_.key, f"--{flag_.name}")
    return message


def _given(flag: Flag, options: Sequence[str]) -> bool:
    names = (f"--{flag.name}", *((f"-{flag.short}",) if flag.short else ()))
    return any(option in names or option.startswith(f"--{flag.name}=") for option in options)


def _named(message: str, key: str, flag: str) -> str:
    """The key where it is the subject of a sentence; one with an underscore, which is no word, wherever it stands."""
    last = key.rpartition(".")[2]
    subject = rf"(?:'?{re.escape(key)}'?|'?{re.escape(last)}'?)"
    message = re.sub(rf"(^|: |\n  - | and ){subject}(?= is |: | and )", rf"\1{flag}", message)
    message = re.sub(rf"^{re.escape(last)}=(\S+)(?= can't be used| is not known)", rf"{flag} \1", message)
    message = re.sub(rf"(^|: ){re.escape(last)} = (?=\S+ has no effect)", rf"\1{flag} ", message)
    if "_" in last:
        message = re.sub(rf"(?<![^\s(])(?:data\.|lora\.)?{last}(?=[\s,:.;)]|$)", flag, message)
    return message
