"""`veneer extract`: a LoRA adapter out of two full models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veneer.cli.console import Output, facts_table, table
from veneer.cli.flags import OUTPUT
from veneer.cli.options import Flag, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from veneer.recipes.extraction import Extraction

__all__ = ["EXAMPLES", "extract"]

EXAMPLES = """\
[dim]Examples[/]
$ veneer extract bert-base-uncased path/to/tuned --max-error 0.1
$ veneer extract bert-base-uncased path/to/tuned --r 16 --out adapters/tuned
$ veneer extract path/to/base path/to/tuned --r 16 --json
"""

_FLAGS = (
    Flag("r", None, int, "The rank to keep.", "Rank", metavar="N"),
    Flag("max-error", None, float, "Or: the lowest rank with at most this error.", "Rank", metavar="X"),
    Flag(
        "out", None, Path, "Write the adapter, its errors and a picture there.", "Output", "o", metavar="PATH"
    ),
    Flag("overwrite", None, bool, "Replace an adapter that stands there.", "Output"),
)
_SHOWN_RANKS = (1, 4, 16, 64)
_SHOWN_NOTES = 3


@with_flags(*_FLAGS, *OUTPUT)
def extract(
    base: Annotated[str, typer.Argument(help="Hub name or folder of the base.", show_default=False)],
    tuned: Annotated[
        str, typer.Argument(help="The model that was tuned from it, in full.", show_default=False)
    ],
    **settings: Any,
) -> None:
    """Make the LoRA adapter that is nearest to what fine-tuning changed.

    By singular values, layer by layer; says the error of each rank, and what no adapter can carry.
    """
    output = Output(json=settings["json"], quiet=settings["quiet"])
    with output.working():
        from veneer.recipes.extraction import extract_folders

        found = extract_folders(
            base,
            tuned,
            r=settings["r"],
            max_error=settings["max_error"],
            out=settings["out"],
            overwrite=settings["overwrite"],
        )
        for note in _notes(found):
            output.warn(note)
    output.result(found.to_json(), lambda console: _show(console, found))


def _notes(found: Extraction) -> list[str]:
    """What no low-rank pair carries, the largest first."""
    left = sorted(found.unrepresented, key=lambda each: -each.norm)
    if not left:
        return []
    named = [
        f"{each.name} (by {each.norm / each.base_norm:.2%} of its size)" if each.base_norm else each.name
        for each in left[:_SHOWN_NOTES]
    ]
    more = f" and {len(left) - len(named)} more" if len(left) > len(named) else ""
    many = "1 tensor differs and is" if len(left) == 1 else f"{len(left)} tensors differ and are"
    return [
        f"{many} in no adapter: {', '.join(named)}{more}. Biases, norms and embeddings are not carried by a "
        "low-rank pair here."
    ]


def _show(console: Console, found: Extraction) -> None:
    places = [i for i, rank in enumerate(found.ranks) if rank in _SHOWN_RANKS or rank == found.r]
    shown = table(
        "layer", "change", *(f"r {found.ranks[i]}" for i in places), numbers=range(1, len(places) + 2)
    )
    whole = max(found.layers, key=len, default="")
    roots = [
        part for part in whole.split(".")[:1] if all(name.startswith(f"{part}.") for name in found.layers)
    ]
    for name, facts in found.layers.items():
        short = name.removeprefix(f"{roots[0]}.") if roots else name
        shown.add_row(
            short, f"{facts['relative_change']:.2%}", *(f"{facts['errors'][i]:.1%}" for i in places)
        )
    shown.add_row("all layers", "", *(f"{found.errors[i]:.1%}" for i in places), style="bold")
    console.print(shown)
    console.print()
    rows = [("rank", f"{found.r}; error {found.error:.2%} of the change")]
    if found.saved_whole:
        rows.append(("stored whole", f"{', '.join(found.saved_whole)} (the head)"))
    if found.folder is not None:
        rows.append(("adapter", f"{found.folder} (PEFT's two files, errors.json, singular_values.png)"))
    console.print(facts_table(rows))
