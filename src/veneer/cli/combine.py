"""`veneer combine`: one adapter out of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from veneer.cli.console import Output, facts_table
from veneer.cli.flags import OUTPUT
from veneer.cli.merge import BASE
from veneer.cli.options import Flag, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.tasks.combined import CombinedFolder

__all__ = ["EXAMPLES", "FLAGS", "combine"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer combine adapters/c -a adapters/a=0.7 -a adapters/b=0.3 --heads mean
$ veneer combine both --adapter a=1 -a b=1 --method svd --r 16 --heads a
$ veneer combine both -a a=1 -a b=1 --method ties --density 0.3 --heads mean
"""

FLAGS = (
    Flag(
        "adapter", None, list[str], "An adapter folder and its weight; repeat.", "Sum", "a", metavar="PATH=X"
    ),
    Flag(
        "method",
        "combine.method",
        Literal["concat", "svd", "ties", "dare"],
        "concat (exact), svd, ties or dare (concat).",
        "Sum",
        metavar="NAME",
    ),
    Flag("r", "combine.r", int, "The rank to keep, of svd, ties and dare.", "Sum", metavar="N"),
    Flag(
        "density", "combine.density", float, "Share that ties and dare keep, in 0 to 1.", "Sum", metavar="X"
    ),
    Flag("seed", None, int, "Of what dare drops (0).", "Sum", metavar="N"),
    Flag("heads", "combine.heads", str, "same, mean, or whose (same).", "Sum", metavar="WHICH"),
    BASE,
    Flag("overwrite", None, bool, "Replace an adapter that stands there.", "Output"),
)


@with_flags(*FLAGS, *OUTPUT)
def combine(
    out: Annotated[Path, typer.Argument(help="The adapter folder to write.", show_default=False)],
    **settings: Any,
) -> None:
    """Add up what several adapters of one base change, each with a weight.

    The products are summed, never A and B apart: exactly (concat, the ranks add up), or nearest of a rank.
    Heads have no sum: they are the same, their mean, or one adapter's.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    weights = _weights(settings["adapter"] or ())
    with output.working():
        from veneer.tasks.combined import combine_adapters

        done = combine_adapters(
            out,
            weights,
            method=settings["method"] or "concat",
            r=settings["r"],
            density=settings["density"],
            seed=settings["seed"] or 0,
            heads=settings["heads"] or "same",
            base=settings["base"],
            overwrite=settings["overwrite"],
        )
    value = {
        "adapter": str(done.path),
        "weights": dict(done.weights),
        "method": done.made.method,
        "heads": done.heads,
        "r": max(done.made.ranks.values()),
        "error": done.made.error,
        "layers": {name: {"r": r, "error": done.made.errors[name]} for name, r in done.made.ranks.items()},
    }
    output.result(value, lambda console: _show(console, done))


def _weights(given: Sequence[str]) -> dict[str, float]:
    """ "path=0.7" -> {"path": 0.7}; a path may hold a "=" itself."""
    found: dict[str, float] = {}
    for each in given:
        path, _, weight = each.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            path = ""
        if not path:
            raise typer.BadParameter(
                f"--adapter {each!r}: expected a folder and its weight, such as adapters/a=0.7."
            )
        if path in found:
            raise typer.BadParameter(f"--adapter names {path} twice; give it once with the whole weight.")
        found[path] = value
    return found


def _show(console: Console, done: CombinedFolder) -> None:
    made = done.made
    ranks = sorted(set(made.ranks.values()))
    rank = f"r {ranks[0]}" if len(ranks) == 1 else f"r {ranks[0]} to {ranks[-1]}"
    exact = "exact" if made.method == "concat" else f"{made.error:.2%} of the sum is lost by the rank"
    console.print(
        facts_table(
            [
                ("adapter", f"{done.path}"),
                ("sum of", ", ".join(f"{weight:g} × {path}" for path, weight in done.weights.items())),
                ("method", f"{made.method}, {rank} on {len(made.ranks)} layers; {exact}"),
                ("heads", done.heads),
                ("measured", "not yet: veneer evaluate does that"),
            ]
        )
    )
