"""`veneer evaluate`: how good an adapter is on labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output
from veneer.cli.flags import LOADING, OUTPUT
from veneer.cli.options import nested, with_flags
from veneer.cli.predict import loaded, written_as
from veneer.cli.scores import confusion_table, further_table, label_table, scores_table
from veneer.cli.settings import COLUMNS, VARIANT, WRITTEN

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.tasks.evaluating import Evaluated

__all__ = ["EXAMPLES", "evaluate"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer evaluate adapters/messages test.csv
$ veneer evaluate adapters/messages new.csv --text-column body
$ veneer evaluate adapters/sst2 sst2 --json
"""


@with_flags(*COLUMNS, *WRITTEN, VARIANT, *LOADING, *OUTPUT)
def evaluate(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder, ours or PEFT's.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            help="A labelled file; or a named source, whose test part counts.", show_default=False
        ),
    ],
    **settings: Any,
) -> None:
    """Measure an adapter on labelled rows.

    Labels that the adapter does not know are an error, never a wrong answer.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    with output.working():
        from veneer.cli.progress import Counter
        from veneer.tasks import evaluating

        adapted = loaded(adapter, settings)
        with Counter(output, "texts") as counter:
            done = evaluating.evaluate(
                adapted,
                source,
                **_columns(settings),
                variant=settings["variant"],
                options=written_as(settings),
                progress=counter,
            )
        output.choices(done.choices)
        for warning in done.warnings:
            output.warn(warning)
    value = {
        "adapter": str(adapter),
        "base": adapted.base.name,
        "task": adapted.task.name,
        "source": source,
        "labels": adapted.task.facts().get("labels"),
        "rows": done.rows,
        "metrics": done.metrics.to_json(),
        "precision": adapted.precision.name,
        "seconds": round(done.seconds, 3),
        "texts_per_second": round(done.rows / max(done.seconds, 1e-9), 1),
    }
    output.result(value, lambda console: _show(console, done))


def _columns(settings: dict[str, Any]) -> dict[str, Any]:
    """The columns that were named, as `evaluating.evaluate` takes them."""
    found = nested(COLUMNS, settings).get("data", {})
    return {key: found.get(key) for key in ("text_column", "text_pair_column", "label_column", "columns")}


def _show(console: Console, done: Evaluated) -> None:
    metrics: Any = done.metrics
    found = metrics.to_json()
    console.print()
    console.print(scores_table([("these rows", metrics.summary())]))
    further = further_table(metrics.summary())
    if further is not None:
        console.print()
        console.print(further)
    if found.get("per_label"):
        console.print()
        console.print(label_table(metrics.per_label))
    if found.get("per_type"):
        console.print()
        console.print(label_table(metrics.per_type, "type", "entities"))
    if found.get("confusion") is not None or found.get("confusions"):
        console.print()
        console.print(confusion_table(metrics.labels, found["confusion"], found["confusions"]))
