"""What a person may say about a recipe. Knows names and limits; loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pydantic

from veneer.strict import StrictModel

__all__ = ["SIZE_NAMES", "Options", "Say"]

SIZE_NAMES = ("124M", "355M", "774M", "1558M", "tiny")

Say = Callable[[str], None]
"""Takes one line for people at a time."""


class Options(StrictModel):
    """The options that all recipes have.

    model           folder with GPT-2's published weights; None: from the hub
    tokenizer       folder with GPT-2's vocab.json and merges.txt; None: from the model's folder
    data            local copy of the recipe's data; None: downloaded
    random_weights  no published weights are needed; every accuracy is then without meaning
    size            of the model with random weights
    efficient       packed texts in place of the sources' padded ones; see each recipe
    precision       of the frozen base with `efficient`: "fp32", "bf16", or "auto": by a measurement
    max_steps       stop after so many steps; the accuracies are then measured on few texts
    max_rows        use at most so many training rows of SST-2
    seed            decides new weights, the split of SST-2 and the order of the texts
    out             folder for pictures, csv files and what was trained; None: reproduced/RECIPE
    """

    model: str | None = None
    tokenizer: Path | None = None
    data: Path | None = None
    random_weights: bool = False
    size: Literal["124M", "355M", "774M", "1558M", "tiny"] = "124M"
    efficient: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_steps: int | None = pydantic.Field(default=None, ge=1)
    max_rows: int | None = pydantic.Field(default=None, ge=100)
    seed: int = pydantic.Field(default=123, ge=0, lt=2**32)
    out: Path | None = None

    def folder(self, recipe: str) -> Path:
        """Where the recipe's files go."""
        return self.out or Path("reproduced") / recipe
