"""A column of numbers as targets, read strictly: no guess at a decimal comma, no number made of a word.

It knows cells, and nothing of tables and splits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import counted
from veneer.errors import DataError
from veneer.naming import settable, setting

__all__ = ["encode_numbers", "strata_of_numbers"]

_BANDS = 10  # a split keeps the share of each tenth of the numbers


def encode_numbers(cells: Iterable[Sequence[str | None]], where: str) -> NDArray[np.float64]:
    """The number of each row, (n,) float64, NaN where the cell is empty.

    Raises:
        DataError: cells that are no finite numbers: which ones, with their rows.
    """
    found: list[float] = []
    wrong: list[tuple[int, str]] = []
    for piece in cells:
        for cell in piece:
            text = (cell or "").strip()
            number = _number(text) if text else math.nan
            if number is None:
                wrong.append((len(found) + 1, text))
            found.append(math.nan if number is None else number)
    if wrong:
        listed = ", ".join(f"{text[:30]!r} in row {row:,}" for row, text in wrong[:5])
        more = ", ..." if len(wrong) > 5 else ""
        comma = (
            " A decimal comma has to be written as a point" if any("," in text for _, text in wrong) else ""
        )
        if comma:
            whole = setting("task", "classification")
            comma += f" ({wrong[0][1].replace(',', '.')[:30]}); {whole} takes such cells for labels."
        raise DataError(
            f"{where}: {counted(len(wrong), 'cell is', 'cells are')} no number ({listed}{more}, counted from 1 without "
            f"the header); the label has to be a number in every row.{comma} {_mend()}"
        )
    return np.array(found, np.float64)


def _mend() -> str:
    if not settable("data.on_missing_label"):
        return "Mend or remove them."
    return f"Mend them, or leave them empty and give {setting('data.on_missing_label', 'drop')}."


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def strata_of_numbers(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) int64: the band of each number among bands of about equally many rows, so that a split has them all."""
    inner = np.quantile(numbers, np.linspace(0, 1, _BANDS + 1)[1:-1]) if len(numbers) else np.zeros(0)
    return np.digitize(numbers, np.unique(inner)).astype(np.int64)
