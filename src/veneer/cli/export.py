"""`veneer export`: an adapter in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from veneer.cli.console import Output, facts_table
from veneer.cli.flags import OUTPUT
from veneer.cli.merge import BASE, drift_line
from veneer.cli.options import Flag, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.tasks.exported import Exported

__all__ = ["EXAMPLES", "export"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer export adapters/messages onnx/messages --format onnx
$ veneer export adapters/messages peft/messages --format peft
$ veneer export adapters/messages onnx/messages --format onnx --json
"""

_FLAGS = (
    Flag(
        "format", None, Literal["onnx", "peft"], "onnx or peft; always needed.", "Output", "f", metavar="NAME"
    ),
    BASE,
    Flag("overwrite", None, bool, "Replace an export that stands there.", "Output"),
)


@with_flags(*_FLAGS, *OUTPUT)
def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    **settings: Any,
) -> None:
    """Write an adapter for other programs.

    onnx: one graph of base, adapter, pooling and head, with its labels and tokenizer, run with onnxruntime on
    the adapter's stored inputs first. peft: PEFT's two files and a README.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    if settings["format"] is None:
        raise typer.BadParameter("give --format onnx or --format peft.")
    with output.working():
        from veneer.tasks.exported import export_adapter

        done = export_adapter(
            adapter,
            out,
            format=settings["format"],
            base=settings["base"],
            overwrite=settings["overwrite"],
        )
        for warning in done.warnings:
            output.warn(warning)
    value = {
        "adapter": str(adapter),
        "folder": str(done.path),
        "format": done.format,
        "files": list(done.files),
        "size_bytes": done.size_bytes,
        "drift": None if done.drift is None else done.drift.largest,
        "changed": None if done.drift is None else done.drift.changed,
        "texts": None if done.drift is None else done.drift.texts,
        "warnings": list(done.warnings),
    }
    output.result(value, lambda console: _show(console, done))


def _show(console: Console, done: Exported) -> None:
    from veneer.evaluation.wording import bytes_text

    rows = [
        ("folder", f"{done.path} ({bytes_text(done.size_bytes)})"),
        ("files", ", ".join(done.files)),
    ]
    if done.drift is not None:
        rows.append(("checked", drift_line(done.drift)))
    console.print(facts_table(rows))
