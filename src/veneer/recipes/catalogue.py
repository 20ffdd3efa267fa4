"""The list of the recipes: what each shows, what it needs, and where it is. Imports a recipe when it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from veneer.errors import ConfigError, nearest
from veneer.recipes.options import Options, Say

__all__ = ["CATALOGUE", "Entry", "run"]


@dataclass(frozen=True)
class Entry:
    """One recipe.

    Attributes:
        name: what `veneer reproduce` calls it.
        shows: in a sentence.
        needs: data, weights, time.
        source: where it comes from.
        module: of `veneer.recipes`; its function `run(options, say)`, with `ways` where there are several.
        ways: what of the module is run.
    """

    name: str
    shows: str
    needs: str
    source: str
    module: str
    ways: tuple[str, ...] = ()


_BOOK = "S. Raschka, Build a Large Language Model (From Scratch), chapter 6 and appendix E"
_SST2 = "GPT-2 of Hugging Face on GLUE's SST-2: partial fine-tuning, LoRA by hook, PEFT"
_SST2_NEEDS = (
    "GPT-2 small, SST-2 (67,349 sentences; 3 epochs: hours on a CPU, --efficient is many times faster)"
)

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "spam-gpt2",
        "LoRA on a GPT-2 written out in full: every linear layer, rank 16; --efficient beside it, packed",
        "GPT-2 small, SMS Spam Collection (1,494 messages; 5 epochs: minutes)",
        _BOOK,
        "spam",
    ),
    Entry(
        "sst2-partial",
        "only the last two attention layers and the head train, and only they are stored",
        _SST2_NEEDS,
        _SST2,
        "sst2",
        ("partial",),
    ),
    Entry(
        "sst2-hook",
        "LoRA of rank 1 by forward hook; nothing in the model is replaced",
        _SST2_NEEDS,
        _SST2,
        "sst2",
        ("hook",),
    ),
    Entry("sst2-peft", "the same through the PEFT library", _SST2_NEEDS + ", peft", _SST2, "sst2", ("peft",)),
    Entry(
        "sst2",
        "the three side by side, with what each stores on disk",
        _SST2_NEEDS + ", peft",
        _SST2,
        "sst2",
        ("partial", "hook", "peft"),
    ),
)


def run(name: str, options: Options, say: Say) -> dict[str, Any]:
    """Run a recipe; `say` gets its lines, the result is its figures as JSON values.

    Raises:
        ConfigError: no recipe of that name.
        UserMistake: weights, tokenizer or data can't be had; said before anything starts.
    """
    found = {entry.name: entry for entry in CATALOGUE}.get(name)
    if found is None:
        known = [entry.name for entry in CATALOGUE]
        raise ConfigError(
            f"There is no recipe {name!r}; there are: {', '.join(known)}. {nearest(name, known)}".rstrip()
        )
    module = importlib.import_module(f"veneer.recipes.{found.module}")
    if found.ways:
        result: dict[str, Any] = module.run(options, say, name=name, ways=found.ways)
    else:
        result = module.run(options, say, name=name)
    return result
