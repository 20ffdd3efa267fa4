"""Texts that stand in several rows: counted, kept on one side of the split, and checked for contradictions.

It knows labelled rows and fingerprints, and does no splitting.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice, Notes, counted
from veneer.data.config import DataConfig
from veneer.data.hashing import Groups, group_equal
from veneer.data.rows import LabelledRows
from veneer.data.split import Parts, contradictions
from veneer.errors import DataError
from veneer.naming import setting

__all__ = ["count_fixed_overlap", "count_repeats", "remove_overlap"]


def remove_overlap(
    config: DataConfig, main: LabelledRows, others: Mapping[str, LabelledRows], notes: Notes
) -> None:
    """Leave texts out of training that stand in validation or test, and out of validation if in test."""
    every = [main, *others.values()]
    ends = np.cumsum([0, *(len(one.table) for one in every)])
    of_row = group_equal(np.concatenate([one.prints for one in every])).of_row
    groups = {id(one): of_row[start:end] for one, start, end in zip(every, ends[:-1], ends[1:], strict=True)}
    named = [("train", main), *others.items()]
    for later, (name_late, late) in enumerate(named):
        for name_early, early in named[:later]:
            theirs = groups[id(late)][late.keep]
            shared = np.isin(groups[id(early)], theirs) & early.keep
            if not shared.any():
                continue
            notes.counts[f"overlap_{name_early}_{name_late}"] = int(shared.sum())
            has = "has" if shared.sum() == 1 else "have"
            text = f"{counted(int(shared.sum()), 'row')} of {name_early} {has}"
            if config.duplicates == "ignore":
                notes.warnings.append(
                    f"{text} a text that is in {name_late} as well; kept ({setting('data.duplicates', 'ignore')})."
                )
                continue
            early.keep &= ~shared
            notes.warnings.append(f"{text} a text that is in {name_late} as well; left out of {name_early}.")
    if not main.keep.any():
        raise DataError(
            f"{main.table.path}: every text stands in the validation or test file; none is left to train on."
        )


def count_repeats(
    main: LabelledRows,
    rows: NDArray[np.int64],
    groups: Groups,
    kept_together: bool,
    notes: Notes,
) -> None:
    """Note how many rows repeat an earlier text, and how many texts have different labels."""
    repeats = int((groups.sizes - 1).sum())
    notes.counts["repeated_texts"] = repeats
    labels = main.labels[rows]
    if labels.ndim == 2 or labels.dtype == np.float64:
        labels = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    texts, places = contradictions(groups, labels.astype(np.int64))
    notes.counts["contradictory_texts"] = texts
    if repeats:
        treatment = "kept on one side of the split" if kept_together else "split as they come"
        notes.choices.append(
            Choice("duplicates", counted(repeats, "row"), f"repeat the text of an earlier row; {treatment}")
        )
    if texts and main.labels.dtype != np.float64:  # numbers for one text may well differ a little
        first = main.table.take(main.columns.text, rows[places[:1]])[0] or ""
        notes.warnings.append(
            f"{counted(texts, 'text')} with different labels in different rows, so that some are likely "
            f"mislabelled; for example {first.strip()[:60]!r}."
        )


def count_fixed_overlap(main: LabelledRows, parts: Parts, notes: Notes) -> None:
    """Note how many texts of a split that the source fixes stand on both sides."""
    of_row = group_equal(main.prints).of_row
    known = np.isin(of_row[np.concatenate([parts.validation, parts.test])], of_row[parts.train])
    if known.any():
        n = notes.counts["overlap_fixed"] = int(known.sum())
        notes.warnings.append(
            f"{counted(n, 'text')} of validation and test with a copy in training; "
            "kept, since this source fixes its split."
        )
