"""Labelled rows for an adapter that is already trained, read as training read them: a file, or the test part of a
named source.

Classification and regression share it. It knows tables and veneer.json's `data`; it computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.labels import LabelSet
from veneer.data.prepare import prepare
from veneer.data.reading import labelled
from veneer.data.rows import LabelForm, Split
from veneer.data.sources import Source
from veneer.errors import DataError
from veneer.naming import setting
from veneer.tasks.kind import Labelled

__all__ = ["labelled_rows"]


def labelled_rows(
    source: Source,
    data: Mapping[str, Any],
    *,
    labels: Sequence[str],
    multi_label: bool = False,
    pair: bool = False,
    number: bool = False,
) -> Labelled:
    """The rows to measure on.

    Args:
        source: a file; or a named source or data set of the hub, of which the test part is taken.
        data: veneer.json's `data`: the columns that were trained on are read if the file has them all.
        labels: names that the adapter knows; none where it gives a number.
        multi_label, pair, number: what a row holds.

    Raises:
        DataError: the rows can't be read, or hold labels that the adapter does not know.
    """
    ours = LabelSet(tuple(labels), str(data.get("labels", {}).get("kind", "string")))
    if source.is_file:
        form = LabelForm(multi_label, data.get("label_separator"), number)
        names = _columns(source, data, pair)
        split, notes = labelled(
            source.path,
            ours,
            form,
            text_column=names["text_column"],
            label_column=names["label_column"],
            pair_column=names["pair_column"],
            options=source.config.table_options(),
        )
        _check_pair(source, split, pair)
        return Labelled(split, tuple(notes.choices), tuple(notes.warnings))
    prepared = prepare(source.config, target="numbers" if number else "labels", source=source)
    split = prepared.test
    if not len(split):
        raise DataError(f"{source.config.source} has no test part. Give a file of labelled rows.")
    _check_pair(source, split, pair)
    if not number:
        split = replace(split, labels=_renumbered(split, prepared.label_set, ours))
    return Labelled(split, prepared.choices, prepared.warnings)


def _columns(source: Source, data: Mapping[str, Any], pair: bool) -> dict[str, str | None]:
    """The columns that were trained on, where the file has them all and nothing else was asked for."""
    config = source.config
    asked = {
        "text_column": config.text_column,
        "label_column": config.label_column,
        "pair_column": config.text_pair_column,
    }
    if any(asked.values()):
        return asked
    before = {
        "text_column": data.get("text_column"),
        "label_column": data.get("label_column"),
        "pair_column": data.get("text_pair_column"),
    }
    wanted = [name for key, name in before.items() if pair or key != "pair_column"]
    return before if all(name in source.columns for name in wanted) else asked


def _check_pair(source: Source, split: Split, pair: bool) -> None:
    if pair == (split.pair_column is not None):
        return
    if pair:
        raise DataError(
            f"{source.config.source}: this adapter reads two texts of each row, and only {split.text_column!r} is one. "
            f"Name the columns with {setting('data.text_column')} and {setting('data.text_pair_column')}."
        )
    raise DataError(
        f"{source.config.source}: this adapter reads one text of each row; two were found ({split.text_column!r} and "
        f"{split.pair_column!r}). Name the one with {setting('data.text_column')}."
    )


def _renumbered(split: Split, theirs: LabelSet, ours: LabelSet) -> NDArray[Any]:
    """The labels of a split under the adapter's numbers."""
    numbers = np.array([ours.id(name) for name in theirs.names], dtype=np.int64)
    targets = np.asarray(split.labels)
    if targets.ndim == 1:
        return numbers[targets]
    found = np.zeros((len(targets), len(ours)), np.uint8)
    found[:, numbers] = targets
    return found
