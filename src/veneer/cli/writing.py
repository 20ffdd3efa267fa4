"""What `veneer generate` and `veneer chat` share: the flags of an answer, and the model that gives it."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from veneer.cli.console import Output
from veneer.cli.flags import LOADING
from veneer.cli.options import Flag, nested

if TYPE_CHECKING:
    from veneer.engine.generation import Sampling
    from veneer.tasks.writing import Writer

__all__ = [
    "MODEL",
    "SAMPLING",
    "SYSTEM",
    "columns_of",
    "cut_note",
    "is_adapter",
    "loaded_writer",
    "printable",
    "sampling_of",
]


def _texts(given: list[str]) -> list[str]:
    r"""Stop texts as they are meant: \n is a line break, \t a tab.

    >>> _texts(["\\n\\n", "###"])
    ['\n\n', '###']
    """
    return [text.replace("\\n", "\n").replace("\\t", "\t") for text in given]


SAMPLING = (
    Flag(
        "max-new-tokens",
        "max_new_tokens",
        int,
        "Tokens of an answer at most (128).",
        "Answer",
        "n",
        metavar="N",
    ),
    Flag(
        "temperature",
        "temperature",
        float,
        "0: the likeliest token; above: drawn (0).",
        "Answer",
        "t",
        metavar="X",
    ),
    Flag("top-k", "top_k", int, "Draw from so many tokens only.", "Answer", metavar="N"),
    Flag("top-p", "top_p", float, "Draw from the likeliest with this share.", "Answer", metavar="X"),
    Flag(
        "repetition-penalty",
        "repetition_penalty",
        float,
        "Above 1: repeats become rarer (1).",
        "Answer",
        metavar="X",
    ),
    Flag(
        "stop",
        "stop",
        list[str],
        r"End before this text (\n: line break); may be repeated.",
        "Answer",
        metavar="TEXT",
        read=_texts,
    ),
    Flag("seed", "seed", int, "Of the draws (0).", "Answer", metavar="N"),
)
MODEL = (
    Flag("base", None, str, "Where its base lies now; alone: that writes.", "Adapter", "b", metavar="NAME"),
    *(flag for flag in LOADING if flag.name != "base"),
)
SYSTEM = Flag("system", None, str, "A system prompt before everything.", "Answer", metavar="TEXT")


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """The flags of `SAMPLING` as settings."""
    from veneer.engine.generation import Sampling

    for flag in ("top-k", "top-p"):
        value = settings[flag.replace("-", "_")]
        if value is not None and not settings["temperature"]:
            raise typer.BadParameter(
                f"--{flag} {value:g} has no effect at temperature 0, where the most likely token is always taken: give "
                "--temperature as well, such as 1, or leave it out."
            )
    return Sampling.parse(nested(SAMPLING, settings), where="the command line", place="")


def columns_of(given: Sequence[str] | None) -> dict[str, str]:
    """--column, each "role=name", as a mapping."""
    found = {}
    for text in given or ():
        role, equals, name = text.partition("=")
        if not (equals and role.strip() and name):
            raise typer.BadParameter(f"--column {text!r}: expected ROLE=NAME, such as prompt=body.")
        found[role.strip()] = name
    return found


def printable(text: str) -> str:
    """A text as a terminal may have it: a model's own control characters don't steer it. A pipe gets the text itself.

    >>> printable("a\tb")
    'a\tb'
    """
    if not sys.stdout.isatty():
        return text
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def cut_note(output: Output, finishes: Iterable[str], most: int) -> None:
    """Say how many answers were cut off."""
    counts = Counter(finishes)
    total = counts.total()
    if counts["length"]:
        which = "the answer was" if total == 1 else f"{counts['length']:,} of {total:,} answers were"
        output.warn(f"{which} cut at {most:,} tokens; --max-new-tokens allows more.")
    if counts["context"]:
        which = "the answer was" if total == 1 else f"{counts['context']:,} of {total:,} answers were"
        output.warn(f"{which} cut because the base reads no further.")


def is_adapter(name: str) -> bool:
    """Whether a word on the command line is a folder."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # a prompt can be longer than any name of a file
        return False


def loaded_writer(
    output: Output, adapter: str | None, settings: Mapping[str, Any], *, chat: bool = False
) -> Writer:
    """The adapter on its base, or the base alone, as the flags of `MODEL` say; and what is to be known of it."""
    from veneer.tasks.writing import load_writer

    writer = load_writer(
        adapter,
        base=settings["base"],
        precision=settings["precision"] or "auto",
        device=settings["device"] or "auto",
        verify=not settings["no_verify"],
        chat=chat,
    )
    if adapter is None:
        output.say(
            f"{writer.base.name} alone, without an adapter; template: {writer.template.says}", style="dim"
        )
    return writer
