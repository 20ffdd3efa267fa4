"""What the tests of the verbs share: a table of messages, and the adapter that was made of it."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXTS = {
    "spam": ["win a free prize now", "call now to win", "free money, call"],
    "ham": ["i love the film", "thanks for the help", "the order is late"],
}


@dataclass(frozen=True)
class Trained:
    """A tiny base, a table, and the adapter that `veneer train` made of them."""

    base: Path
    table: Path
    adapter: Path
    said: dict[str, Any]
    told: str

    @property
    def tiny(self) -> tuple[object, ...]:
        """Flags of a quick run."""
        return "--base", self.base, "--precision", "fp32", "--epochs", 1, "--no-baselines"


def write_table(path: Path, rows: int = 90) -> Path:
    """A table of messages, with commas, quotes and line breaks in some."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "note"])
        for number in range(rows):
            label = draw.choice(sorted(TEXTS))
            nasty = ' "quoted", and\na new line' if number % 7 == 0 else ""
            table.writerow([f"{draw.choice(TEXTS[label])} {number}{nasty}", label, f"n,{number}"])
    return path
