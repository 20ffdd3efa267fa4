"""`veneer reproduce`: the sources' experiments, each with one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from veneer.cli.console import Output, facts_table
from veneer.cli.flags import OUTPUT
from veneer.cli.options import Flag, with_flags

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["EXAMPLES", "reproduce"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer reproduce
$ veneer reproduce spam-gpt2 --efficient
$ veneer reproduce sst2 --model path/to/gpt2 --data path/to/SST-2
$ veneer reproduce sst2-hook --random-weights --tokenizer path/to/gpt2
"""

_FLAGS = (
    Flag("model", "model", str, "Folder of GPT-2's weights (the hub's).", "Recipe", metavar="PATH"),
    Flag("tokenizer", "tokenizer", str, "Folder with vocab.json and merges.txt.", "Recipe", metavar="PATH"),
    Flag("data", "data", str, "A local copy of the data.", "Recipe", metavar="PATH"),
    Flag("efficient", "efficient", bool, "Packed texts in place of padded ones.", "Recipe"),
    Flag(
        "precision",
        "precision",
        Literal["auto", "fp32", "bf16"],
        "Of the base with --efficient (auto).",
        "Recipe",
        metavar="TYPE",
    ),
    Flag("random-weights", "random_weights", bool, "No weights needed; accuracies mean nothing.", "Recipe"),
    Flag(
        "size",
        "size",
        Literal["124M", "355M", "774M", "1558M", "tiny"],
        "With random weights: 124M, 355M, 774M, 1558M or tiny (124M).",
        "Recipe",
        metavar="SIZE",
    ),
    Flag("max-steps", "max_steps", int, "Stop after so many steps.", "Recipe", metavar="N"),
    Flag("max-rows", "max_rows", int, "Use so many training rows of SST-2.", "Recipe", metavar="N"),
    Flag("seed", "seed", int, "Of new weights, split and order (123).", "Recipe", metavar="N"),
    Flag("out", "out", str, "Where the files go (reproduced/RECIPE).", "Recipe", "o", metavar="PATH"),
)


@with_flags(*_FLAGS, *OUTPUT)
def reproduce(
    recipe: Annotated[
        str | None, typer.Argument(help="Its name; none lists the recipes.", show_default=False)
    ] = None,
    **settings: Any,
) -> None:
    """Repeat one of the sources' experiments, on Veneer's own parts.

    Without a name: lists the recipes, what each shows and what it needs.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    if recipe is None:
        from veneer.recipes import CATALOGUE

        listed = [{k: getattr(e, k) for k in ("name", "shows", "needs", "source")} for e in CATALOGUE]
        output.result({"recipes": listed}, lambda console: _list(console, listed))
        return
    with output.working():
        from veneer.recipes import Options, run

        given = {flag.parameter: settings[flag.parameter] for flag in _FLAGS}
        options = Options.parse({k: v for k, v in given.items() if v is not None}, where="the command line")
        figures = run(recipe, options, output.say)
    output.result(figures, lambda console: console.print(str(options.folder(recipe) / "figures.json")))


def _list(console: Console, listed: list[dict[str, str]]) -> None:
    for entry in listed:
        console.print(entry["name"], style="bold")
        rows = [(f"  {key}", entry[key]) for key in ("shows", "needs", "source")]
        console.print(facts_table(rows))
