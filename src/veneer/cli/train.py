"""`veneer train`: from a table of texts and labels to an adapter folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output
from veneer.cli.flags import OUTPUT, RUN
from veneer.cli.options import Flag, assignments, nested, with_flags
from veneer.cli.scores import scores_table
from veneer.cli.settings import SETTINGS

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.training.config import TrainConfig
    from veneer.training.finish import Finished

__all__ = ["EXAMPLES", "configuration", "train"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer train example
$ veneer train messages.csv --text-column body --label-column kind
$ veneer train sms-spam --variant balanced --epochs 3 --out adapters/spam
$ veneer train --config adapters/spam/config.yaml --epochs 8 --fresh
"""


DRY_RUN = Flag("dry-run", None, bool, "Say how long it takes and how much memory; write nothing.", "Training")


@with_flags(*SETTINGS, DRY_RUN, *RUN, *OUTPUT)
def train(
    source: Annotated[
        str | None,
        typer.Argument(help="A file, example, sms-spam, sst2, or a data set of the hub.", show_default=False),
    ] = None,
    **settings: Any,
) -> None:
    """Train an adapter on a table of texts and labels.

    What is not given is inferred, and told. A run that was stopped goes on with the same command.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    with output.working():
        from veneer.cli.progress import TrainProgress

        with TrainProgress(output) as reporter:
            reporter.say("starting")
            if settings["dry_run"]:
                from veneer.training.estimate import estimate

                found = estimate(configuration(source, settings), say=reporter.say)
                output.result(found.to_json(), lambda console: console.print("\n".join(found.lines())))
                return
            from veneer.training.run import train as run

            done = run(
                configuration(source, settings),
                out=settings["out"],
                overwrite=settings["overwrite"],
                fresh=settings["fresh"],
                reporter=reporter,
            )
    output.result(as_json(done), lambda console: show(console, done))


def configuration(source: str | None, settings: Mapping[str, Any]) -> TrainConfig:
    """The command line as a configuration: the file, then --set, then the flags."""
    from veneer.training.config import TrainConfig, merged

    given = merged(assignments(settings["set"] or ()), nested(SETTINGS, settings))
    if source is not None:
        given = merged(given, {"data": {"source": source}})
    if settings["config"] is not None:
        return TrainConfig.from_yaml(settings["config"], given)
    if "source" not in given.get("data", {}):
        raise typer.BadParameter(
            "nothing to train on: name a SOURCE (try: veneer train example), or --config FILE."
        )
    return TrainConfig.parse(given, where="the command line")


def as_json(done: Finished) -> dict[str, Any]:
    """The object of --json; its keys are in docs/json.md."""
    facts, peft = done.facts, done.folder
    return {
        "adapter": str(done.path),
        "base": facts.base.name,
        "task": facts.task,
        "labels": facts.task_facts.get("labels"),
        "metrics": {name: facts.metrics.get(name) for name in ("validation", "test")},
        "baselines": facts.baselines,
        "verdict": {
            "word": done.verdict.word,
            "title": done.verdict.title,
            "sentence": done.verdict.sentence,
        },
        "seconds": round(done.seconds, 3),
        **{key: value for key, value in facts.speed.items() if key != "seconds"},
        "rows": facts.data.get("sizes"),
        "size_bytes": peft.size_bytes,
        "precision": facts.exactness.get("precision"),
        "mode": facts.exactness.get("mode"),
        "choices": facts.data.get("choices"),
        "warnings": facts.data.get("warnings"),
        "base_hash": facts.base.content_hash,
        "data_hash": facts.data.get("content_hash"),
        "config": str(done.path / "config.yaml"),
        "report": str(done.path / "report.html"),
    }


def show(console: Console, done: Finished) -> None:
    """The result as people read it."""
    from veneer.evaluation.wording import bytes_text, duration

    facts, measured = done.facts, done.measured
    rows = [(name, found.summary()) for name, found in measured.metrics.items()]
    rows.sort(key=lambda row: row[0] != measured.decisive)
    rows += [(baseline.name, baseline.scores) for baseline in measured.baselines]
    console.print()
    if rows:
        console.print(scores_table(rows))
        console.print(f"\n{done.verdict.title}.")
    speed = facts.speed
    trained = speed["training_seconds"]  # of all calls, where the run was stopped and went on
    part = "of which" if trained < done.seconds else "after an earlier part; in all"
    count = int(facts.training["threads"])
    console.print(
        f"\ntook     {duration(done.seconds)}, {part} training {duration(trained)}\n"
        f"speed    {speed['texts_per_second']:,.0f} texts/s, {speed['tokens_per_second']:,.0f} tokens/s, "
        f"{count} {'thread' if count == 1 else 'threads'}\n"
        f"adapter  {done.path} ({bytes_text(done.folder.size_bytes)})\n"
        f"report   open {done.path / 'report.html'}\n"
        f"next     {done.commands[0]}",
        soft_wrap=True,  # a path is not broken into two
    )
