"""Which labels have rows to learn from: the others are dropped, and what is measured has to be trained.

It knows labelled rows and splits, and not how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Notes, counted
from veneer.data.labels import LabelSet
from veneer.data.rows import LabelledRows, Labels, Split
from veneer.errors import DataError

__all__ = ["check_trained", "keep_used_labels", "per_label"]


def keep_used_labels(
    main: LabelledRows, others: Mapping[str, LabelledRows], labels: LabelSet, notes: Notes
) -> LabelSet:
    """The labels that usable rows have; where some have none, the rows' labels are renumbered in place.

    Raises `DataError` where fewer than two are left, or where another file has one that is not.
    """
    rows = main.kept
    numbers = per_label(main.labels[rows], len(labels))
    if (numbers > 0).sum() < 2:
        raise DataError(
            f"{main.table.path}: fewer than two labels are left in the {counted(len(rows), 'usable row')}."
        )
    alive = np.flatnonzero(numbers)
    once = [repr(labels.names[place]) for place in np.flatnonzero(numbers == 1)]
    if once:
        which = (
            f"{len(once):,} labels are each seen once ({', '.join(once[:5])}{', ...' if len(once) > 5 else ''}); they"
            if len(once) > 1
            else f"The label {once[0]} is seen once; it"
        )
        notes.warnings.append(f"{which} can only be trained on, and can't be measured.")
    if len(alive) == len(labels):
        return labels
    gone = [name for place, name in enumerate(labels.names) if not numbers[place]]
    notes.warnings.append(f"Labels with no usable row, left out: {', '.join(gone[:20])}.")
    for one in (main, *others.values()):
        _renumber(one, alive, len(labels), gone)
    return replace(labels, names=tuple(labels.names[place] for place in alive))


def check_trained(train: Split, others: tuple[Split, ...], labels: LabelSet, notes: Notes) -> None:
    """Every label that is measured has to be trained: an error, or a warning for several labels per text."""
    trained = per_label(train.labels, len(labels))
    measured = np.sum([per_label(split.labels, len(labels)) for split in others], axis=0)
    untrained = [name for place, name in enumerate(labels.names) if not trained[place] and measured[place]]
    if not untrained:
        return
    message = (
        f"No training text has the label {', '.join(map(repr, untrained[:20]))}, but validation or test has."
    )
    if train.labels.ndim == 1:
        raise DataError(f"{message} Add such texts to training, or remove them from the other parts.")
    notes.warnings.append(message)


def _renumber(rows: LabelledRows, alive: NDArray[np.int64], n: int, gone: list[str]) -> None:
    dead = np.ones(n, np.bool_)
    dead[alive] = False
    if rows.labels.ndim == 2:
        lost = rows.labels[:, dead].any(axis=1) & rows.keep
        rows.labels = rows.labels[:, alive]
    else:
        lost = np.isin(rows.labels, np.flatnonzero(dead)) & rows.keep
        rows.labels = np.searchsorted(alive, np.clip(rows.labels, 0, None)).astype(np.int64)
    if lost.any():
        raise DataError(
            f"{rows.table.path} holds labels that no usable training row has: {', '.join(gone[:20])}. "
            "Use more rows, or remove those labels."
        )


def per_label(labels: Labels, n: int) -> NDArray[np.int64]:
    """How many rows have each of `n` labels, from ids (rows,) or multi-hot rows (rows, n)."""
    if labels.ndim == 2:
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels.astype(np.int64, copy=False), minlength=n).astype(np.int64)
