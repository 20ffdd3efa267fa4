"""`veneer predict`: answers for texts, for standard input, or for a file of any size."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output
from veneer.cli.flags import ANSWERS, LOADING, OUTPUT
from veneer.cli.options import with_flags
from veneer.errors import DataError

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted
    from veneer.tasks.answering import Rows

__all__ = ["EXAMPLES", "loaded", "predict"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer predict adapters/messages "You won a prize, call now"
$ veneer predict adapters/messages --file new.csv --out answers.csv
$ cat new.txt | veneer predict adapters/messages - --json
"""


@with_flags(*ANSWERS, *LOADING, *OUTPUT)
def predict(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.", show_default=False)],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; - reads them from standard input, one a line.", show_default=False),
    ] = None,
    **settings: Any,
) -> None:
    """Answer texts with an adapter.

    A file may have any size: it is answered piece by piece. --out is written whole or not at all.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    _check_given(texts, settings)
    if settings["out"] is not None:
        _answer_file(output, adapter, settings)
        return
    with output.working():
        rows = _rows(output, adapter, texts or [], settings)
        if output.json:
            found = [{"text": text, **answer} for _, text, answer in rows]
            if not found:
                raise DataError("standard input holds no text; a text in each line was expected.")
    if output.json:
        output.result({"adapter": str(adapter), "answers": found}, lambda _: None)
    else:
        _print(rows, every=settings["all_probabilities"])


def loaded(adapter: Path, settings: Mapping[str, Any]) -> Adapted:
    """The adapter on its base, as the flags of `LOADING` say."""
    from veneer.tasks.adapted import load

    return load(
        adapter,
        base=settings["base"],
        precision=settings["precision"] or "auto",
        device=settings["device"] or "auto",
        verify=not settings["no_verify"],
    )


def _check_given(texts: list[str] | None, settings: Mapping[str, Any]) -> None:
    """One of the three ways to give texts, before anything is loaded."""
    if (settings["file"] is None) == (not texts):
        ways = "texts, --file FILE, or - for standard input"
        raise typer.BadParameter(f"give {ways}." if not texts else f"give only one of: {ways}.")
    if settings["file"] is None and (settings["out"] or settings["text_column"]):
        raise typer.BadParameter("--out and --text-column go with --file.")
    for place, text in enumerate(texts or (), start=1):
        if not text.strip():
            raise DataError(f"text {place} is empty; there is nothing to answer.")


def _rows(output: Output, adapter: Path, texts: list[str], settings: Mapping[str, Any]) -> Rows:
    """The answers, one by one."""
    from veneer.data.reading import read_texts
    from veneer.tasks.answering import answer_texts, read_lines

    lines: Iterable[tuple[dict[str, Any], str]]
    if settings["file"] is not None:
        stream = read_texts(settings["file"], settings["text_column"])
        output.choices(stream.choices)
        lines = stream
    else:
        lines = read_lines(sys.stdin) if texts == ["-"] else [({}, text) for text in texts]
    return answer_texts(loaded(adapter, settings), lines)


def _answer_file(output: Output, adapter: Path, settings: Mapping[str, Any]) -> None:
    out: Path = settings["out"]
    with output.working():
        from veneer.cli.progress import Counter
        from veneer.tasks.answering import answer_file, check_out

        check_out(out, overwrite=settings["overwrite"])
        adapted = loaded(adapter, settings)
        task: Any = adapted.task
        with Counter(output, "rows") as counter:
            done = answer_file(
                adapted,
                settings["file"],
                out,
                text_column=settings["text_column"],
                all_probabilities=task.labels if settings["all_probabilities"] else (),
                overwrite=settings["overwrite"],
                progress=counter,
            )
    if done.empty:
        output.warn(f"{done.empty:,} of the rows have no text, and no answer.")
    value = {"adapter": str(adapter), "out": str(out), "rows": done.rows, "empty": done.empty}
    columns = ", ".join(done.columns)
    output.result(
        value | {"columns": list(done.columns)},
        lambda console: console.print(f"{out}: {done.rows:,} rows, with {columns} added", soft_wrap=True),
    )


def _print(rows: Rows, *, every: bool) -> None:
    """A row a text: aligned for a person, tab-separated for a program."""
    person, some = sys.stdout.isatty(), False
    table = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for _, text, answer in rows:
        some = True
        label = _label(answer)
        chances = answer["probabilities"] or {} if every else {}
        if person:
            _print_aligned(label, answer.get("probability"), text, chances)
        else:
            table.writerow([label, answer.get("probability", ""), text, *chances.values()])
    if not some:
        raise DataError("there was no text to answer; a text in each line was expected.")


def _print_aligned(label: str, chance: float | None, text: str, chances: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    share = "" if chance is None else f"{100 * chance:5.1f} %"
    line = Text.assemble((f"{label:<14}", "bold"), f" {share:>7}  ", (" ".join(text.split()), "dim"))
    console.print(line, no_wrap=True, overflow="ellipsis")
    for name, value in sorted(chances.items(), key=lambda pair: -pair[1]):
        console.print(f"  {name:<20} {100 * value:5.1f} %", style="dim", markup=False)


def _label(answer: Mapping[str, Any]) -> str:
    """The label of an answer, or its labels, as a cell."""
    if "labels" in answer:
        return "|".join(map(str, answer["labels"] or ()))
    return "" if answer["label"] is None else str(answer["label"])
