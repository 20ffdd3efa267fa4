"""`veneer predict`: answers for texts, for standard input, or for a file of any size."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.colours import tag_colour
from veneer.cli.console import Output
from veneer.cli.flags import ANSWERS, LOADING, OUTPUT
from veneer.cli.options import nested, with_flags
from veneer.cli.settings import WRITTEN, read_roles
from veneer.errors import DataError, UserMistake

if TYPE_CHECKING:
    from veneer.data.tables import TableOptions
    from veneer.tasks.adapted import Adapted
    from veneer.tasks.answering import Rows
    from veneer.tasks.base import Input

__all__ = ["EXAMPLES", "loaded", "predict", "written_as"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer predict adapters/messages "You won a prize, call now"
$ veneer predict adapters/similar "A man sleeps." --pair "He is asleep."
$ veneer predict adapters/wiki --question "Who wrote it?" --context page.txt
$ veneer predict adapters/messages --file new.csv --out answers.csv
$ cat new.txt | veneer predict adapters/messages - --json
"""


@with_flags(*ANSWERS, *WRITTEN, *LOADING, *OUTPUT)
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
    if settings["question"] is not None:
        if texts:
            raise typer.BadParameter("give questions as texts or with --question, not both.")
        texts = [settings["question"]]
    _check_given(texts, settings)
    if settings["out"] is not None:
        _answer_file(output, adapter, settings)
        return
    with output.working():
        keys, rows = _rows(output, adapter, texts or [], settings)
        if output.json:
            found = [{**_named(given), **answer} for _, given, answer in rows]
            if not found:
                raise DataError("standard input holds no text; a text in each line was expected.")
    if output.json:
        output.result({"adapter": str(adapter), "answers": found}, lambda _: None)
    else:
        _print(rows, keys, every=settings["all_probabilities"])


def loaded(adapter: Path, settings: Mapping[str, Any]) -> Adapted:
    """The adapter on its base, as the flags of `LOADING` say."""
    from veneer.tasks.loading import load

    return load(
        adapter,
        base=settings["base"],
        precision=settings["precision"] or "auto",
        device=settings["device"] or "auto",
        verify=not settings["no_verify"],
    )


def written_as(settings: Mapping[str, Any]) -> TableOptions | None:
    """How a file is written, as the flags of `WRITTEN` say; None: they say nothing."""
    from veneer.data.config import DataConfig

    found = nested(WRITTEN, settings).get("data", {})
    if not found:
        return None
    return DataConfig.parse({**found, "source": "-"}, where="the command line").table_options()


def _check_given(texts: list[str] | None, settings: Mapping[str, Any]) -> None:
    """One of the three ways to give texts, before anything is loaded."""
    if (settings["file"] is None) == (not texts):
        ways = "texts, --file FILE, or - for standard input"
        raise typer.BadParameter(f"give {ways}." if not texts else f"give only one of: {ways}.")
    columns = [settings[name] for name in ("text_column", "text_pair_column", "column")]
    columns += [settings[flag.parameter] for flag in WRITTEN]
    if settings["file"] is None and (settings["out"] or any(columns)):
        raise typer.BadParameter(
            "--out, --text-column and --encoding go with --file, and so do the other flags of a file and its columns."
        )
    second = settings["pair"] is not None or settings["context"] is not None
    if second and (settings["file"] is not None or texts == ["-"]):
        raise typer.BadParameter("--pair and --context go with texts on the command line.")
    if settings["pair"] is not None and settings["context"] is not None:
        raise typer.BadParameter("give only one of --pair and --context.")
    named = {f"text {place}": text for place, text in enumerate(texts or (), start=1)}
    named |= {f"--{name}": settings[name] for name in ("pair", "context") if settings[name] is not None}
    for name, text in named.items():
        if not text.strip():
            raise DataError(f"{name} is empty; there is nothing to answer.")


def _rows(
    output: Output, adapter: Path, texts: list[str], settings: Mapping[str, Any]
) -> tuple[Sequence[str], Rows]:
    """Keys of an answer that are shown, and the answers, one by one."""
    from veneer.tasks.answering import answer_texts, open_inputs, read_lines

    adapted = loaded(adapter, settings)
    _labels_asked_for(adapted, settings)
    lines: Iterable[tuple[dict[str, Any], Input]]
    if settings["file"] is not None:
        stream = open_inputs(adapted, settings["file"], _columns(settings), written_as(settings))
        output.choices(stream.choices)
        lines = stream
    elif texts == ["-"]:
        lines = read_lines(sys.stdin, adapted.task.inputs)
    else:
        settings = _with_context(output, settings)
        lines = [({}, _given(adapted, text, settings)) for text in texts]
    called = (
        "line" if texts == ["-"] else f"{settings['file']}, row" if settings["file"] is not None else "input"
    )
    return adapted.task.answer_keys, answer_texts(adapted, lines, called=called)


def _labels_asked_for(adapted: Adapted, settings: Mapping[str, Any]) -> Sequence[str]:
    """The labels of which each has a probability, where --all-probabilities is given.

    Raises:
        UserMistake: it is given, and a text has no label of this adapter's.
    """
    if not settings["all_probabilities"]:
        return ()
    task = adapted.task
    labels = task.facts().get("labels") if task.head.form == "sequence" else None
    if labels:
        return tuple(labels)
    own = "; each has its score." if task.name in ("entities", "answers") else "."
    raise UserMistake(
        f"--all-probabilities: an adapter for {task.name} gives a text no labels to choose from. Leave it out{own}"
    )


def _with_context(output: Output, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with the text of --context, where that names a file."""
    from veneer.data.reading import text_or_file

    if settings["context"] is None:
        return settings
    text, choice = text_or_file(settings["context"], "context")
    output.choices([choice] if choice else [])
    return {**settings, "context": text}


def _given(adapted: Adapted, text: str, settings: Mapping[str, Any]) -> Input:
    """A text of the command line with what was given beside it.

    Raises:
        UserMistake: the adapter reads two texts and got one, or the other way round.
    """
    names = adapted.task.inputs
    second = settings["pair"] if settings["pair"] is not None else settings["context"]
    flag = "--context" if names[-1] == "context" else "--pair"
    if (second is not None) != (len(names) > 1):
        says = f"reads {' and '.join(names)}"
        raise UserMistake(
            f'This adapter {says}; give the second one with {flag} "...".'
            if len(names) > 1
            else f"This adapter {says} alone; leave --pair and --context out."
        )
    return text if second is None else {names[0]: text, names[1]: second}


def _columns(settings: Mapping[str, Any]) -> dict[str, str]:
    """Input -> column, as far as they were named."""
    named = {"text": settings["text_column"], "text_pair": settings["text_pair_column"]}
    found = {name: column for name, column in named.items() if column is not None}
    return found | (read_roles(settings["column"]) if settings["column"] else {})


def _named(given: Input) -> dict[str, str]:
    """An input as keys of a JSON object."""
    return {"text": given} if isinstance(given, str) else dict(given)


def _answer_file(output: Output, adapter: Path, settings: Mapping[str, Any]) -> None:
    out: Path = settings["out"]
    with output.working():
        from veneer.cli.progress import Counter
        from veneer.tasks.answering import answer_file, check_out

        check_out(out, settings["file"], overwrite=settings["overwrite"])
        adapted = loaded(adapter, settings)
        labels = _labels_asked_for(adapted, settings)
        with Counter(output, "rows") as counter:
            done = answer_file(
                adapted,
                settings["file"],
                out,
                columns=_columns(settings),
                options=written_as(settings),
                all_probabilities=labels,
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


def _print(rows: Rows, keys: Sequence[str], *, every: bool) -> None:
    """A row an input: aligned for a person, tab-separated for a program: the answer, then what was asked.

    Of entities a program gets a row each: the number of the input from 1, type, text, first character and the one after
    the last, score.
    """
    person, some = sys.stdout.isatty(), False
    table = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for number, (_, given, answer) in enumerate(rows, start=1):
        some = True
        texts = list(_named(given).values())
        shown = {key: answer[key] for key in keys}
        chances = answer.get("probabilities") or {} if every else {}
        if person and "entities" in shown:
            print_entities(shown["entities"] or [], _read_text(given))
        elif "entities" in shown:
            columns = ("label", "text", "start", "end", "score")
            table.writerows([number, *(one[key] for key in columns)] for one in shown["entities"] or [])
        elif person:
            _print_aligned(shown, " | ".join(texts), chances)
        else:
            cells = list(map(cell, shown.values()))
            blank = [""] if "labels" in shown else []  # beside one label stands its probability
            table.writerow([*cells, *blank, *texts, *chances.values()])
    if not some:
        raise DataError("there was no text to answer; a text in each line was expected.")


def _read_text(given: Input) -> str:
    """The text whose characters entities stand for: tokens joined, as they are read."""
    from veneer.tasks.entity_words import given_words

    text, _ = given_words(given, 0)
    return text


def _print_aligned(answer: Mapping[str, Any], text: str, chances: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    first, *others = answer.items()
    line = Text.assemble((f"{'–' if first[1] is None else cell(first[1])!s:<14}", "bold"), " ")
    for key, value in others:
        percent = key == "probability" and value is not None
        line.append(f"{100 * value:5.1f} %" if percent else f"{cell(value)}", "" if percent else "cyan")
        line.append(" ")
    line.append(" " + " ".join(text.split()), "dim")
    console.print(line, no_wrap=True, overflow="ellipsis")
    for name, value in sorted(chances.items(), key=lambda pair: -pair[1]):
        console.print(f"  {name:<20} {100 * value:5.1f} %", style="dim", markup=False)


def print_entities(entities: Sequence[Mapping[str, Any]], text: str) -> None:
    """A text with its entities in colour, and a line for each of them: type, characters, how sure."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    line = Text(text)
    for one in entities:
        line.stylize(f"bold {tag_colour(one['label'])}", one["start"], one["end"])
    console.print(line, soft_wrap=True)
    for one in entities:
        place = f"{one['start']}-{one['end']}"
        row = Text.assemble(
            (f"  {one['label']:<14}", tag_colour(one["label"])), f" {100 * one['score']:5.1f} %"
        )
        row.append(f" {place:>9}  ", "dim").append(" ".join(one["text"].split()))
        console.print(row, no_wrap=True, overflow="ellipsis")


def cell(value: Any) -> Any:
    """A value of an answer as a cell."""
    from veneer.tasks.row_files import as_cell

    return as_cell(value)
