"""`veneer merge`: an adapter and its base as one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output, facts_table
from veneer.cli.flags import LOADING, OUTPUT
from veneer.cli.options import Flag, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.tasks.merged import Merged

__all__ = ["BASE", "EXAMPLES", "drift_line", "merge"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer merge adapters/messages models/messages
$ veneer merge adapters/messages models/messages --base path/to/base
$ veneer merge path/to/a/peft/folder models/plain --json
"""

BASE = next(flag for flag in LOADING if flag.name == "base")
_FLAGS = (BASE, Flag("overwrite", None, bool, "Replace a model that stands there.", "Output"))


@with_flags(*_FLAGS, *OUTPUT)
def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The model folder to write.", show_default=False)],
    **settings: Any,
) -> None:
    """Write a full model that transformers loads without any adapter.

    In the base's dtype, summed in fp32. It is loaded again and compared on the adapter's stored inputs first.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    with output.working():
        from veneer.tasks.merged import merge_adapter

        done = merge_adapter(adapter, out, base=settings["base"], overwrite=settings["overwrite"])
        for warning in done.warnings:
            output.warn(warning)
    value = {
        "adapter": str(adapter),
        "model": str(done.path),
        "dtype": done.dtype,
        "pooling": done.pooling,
        "pooling_of_transformers": done.native,
        "drift": done.drift.largest,
        "changed": done.drift.changed,
        "texts": done.drift.texts,
        "size_bytes": done.size_bytes,
        "warnings": list(done.warnings),
    }
    output.result(value, lambda console: _show(console, done))


def _show(console: Console, done: Merged) -> None:
    from veneer.evaluation.wording import bytes_text

    read = "as transformers' class" if done.native else "which transformers' class does not do"
    reads = [] if done.pooling is None else [("reads", f"{done.pooling} pooling, {read}")]
    console.print(
        facts_table(
            [
                ("model", f"{done.path} ({bytes_text(done.size_bytes)}, {done.dtype})"),
                *reads,
                ("checked", drift_line(done.drift)),
            ]
        )
    )


def drift_line(drift: Any) -> str:
    """How far what was written is from the adapter, in one line."""
    answers = "the same answers" if not drift.changed else f"{drift.changed} other answers"
    return f"{drift.texts} texts, {answers}, numbers differ by at most {drift.largest:.1e}"
