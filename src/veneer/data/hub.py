"""Data sets of the Hugging Face hub, through the optional library `datasets`.

It turns a hub data set into tables; it knows no task and no named source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veneer.data.choices import Choice
from veneer.data.parquet_rows import as_text_batches, kind_of
from veneer.data.sources import Loaded
from veneer.data.tables import ROWS_PER_BATCH, Table
from veneer.errors import MissingExtraError, SourceError

__all__ = ["load_from_hub"]

_VALIDATION_NAMES = ("validation", "dev", "valid", "val")


def load_from_hub(name: str, *, class_names: bool = True) -> Loaded:
    """The data set "owner/name", or "owner/name:config", as tables; splits by their usual names.

    class_names   write the names of its class labels, where it has them, for their numbers

    Raises `MissingExtraError` without the library, `SourceError` where the set can't be had.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(f"The hub data set {name}", "hub") from None
    identifier, _, config = name.partition(":")
    try:
        found: Mapping[str, Any] = datasets.load_dataset(identifier, config or None)
    except (OSError, ValueError, RuntimeError) as error:  # the base classes of what `datasets` raises
        raise SourceError(_explain(name, error)) from error
    splits = {split: _as_table(name, split, data, class_names) for split, data in found.items()}
    train = splits.get("train") or next(iter(splits.values()))
    validation = next((splits[split] for split in _VALIDATION_NAMES if split in splits), None)
    listed = ", ".join(f"{split} ({len(table):,})" for split, table in splits.items())
    choices = (Choice("source", f"hub data set {name}", f"splits: {listed}"),)
    return Loaded(train, validation, _labelled_test(found, splits), choices=choices)


def _labelled_test(found: Mapping[str, Any], splits: Mapping[str, Table]) -> Table | None:
    """The test split, unless its labels are held back (all -1, as GLUE writes them)."""
    if "test" not in splits:
        return None
    for column, feature in found["test"].features.items():
        if hasattr(feature, "names"):
            labels = set(found["test"].unique(column))
            if labels <= {-1, None}:
                return None
    return splits["test"]


def _as_table(name: str, split: str, data: Any, class_names: bool) -> Table:
    import pyarrow as pa

    kinds = {column: kind_of(field.type) for column, field in _arrow_fields(data).items()}
    pieces = data.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
    table = pa.Table.from_batches(list(as_text_batches(b for piece in pieces for b in piece.to_batches())))
    for place, column in enumerate(table.column_names):
        names = getattr(data.features[column], "names", None)
        if class_names and names is not None:
            named = {str(number): label for number, label in enumerate(names)}
            cells = [named.get(cell) for cell in table.column(column).to_pylist()]
            table = table.set_column(place, column, pa.array(cells, pa.string()))
            kinds[column] = "string"
        each = getattr(getattr(data.features[column], "feature", None), "names", None)
        if class_names and each is not None:  # a list of class labels: the tags of words
            lists = [None if cell is None else json.loads(cell) for cell in table.column(column).to_pylist()]
            cells = [None if numbers is None else json.dumps([each[n] for n in numbers]) for numbers in lists]
            table = table.set_column(place, column, pa.array(cells, pa.string()))
    return Table(Path(f"{name}[{split}]"), table, kinds)


def _arrow_fields(data: Any) -> dict[str, Any]:
    schema = data.features.arrow_schema
    return {column: schema.field(column) for column in schema.names}


def _explain(name: str, error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return (
            f"The hub data set {name} is not in the cache and HF_HUB_OFFLINE is set. "
            "Unset it, or download the data set where there is a network and give a local file."
        )
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"The hub data set {name} can't be had: {first} There is no local file of this name either. "
        "Check the name and the network, or give a local file (csv, tsv, json, jsonl, parquet)."
    )
