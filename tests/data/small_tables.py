"""Small tables for the tests of this folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

WORDS = "alder birch cedar dogwood elm fir gum hazel ironwood juniper".split()  # noqa: SIM905


def write_csv(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """A csv file with these columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def phrase(number: int) -> str:
    """A text of a few words, different for each number."""
    return f"{WORDS[number % 10]} {WORDS[number // 10 % 10]} stands {number} steps from here"
