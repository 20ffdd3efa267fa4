"""Rows of a file with something added behind them, written as csv, tsv or jsonl. Knows cells and no task."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

__all__ = ["PutRow", "as_cell", "free_name", "row_writer"]

PutRow = Callable[[Mapping[str, Any], Mapping[str, Any]], None]


def free_name(name: str, taken: Sequence[str]) -> str:
    """The name, with "predicted_" before it where the file has such a column already."""
    while name in taken:
        name = f"predicted_{name}"
    return name


def row_writer(
    file: IO[str], suffix: str, columns: Sequence[str], kinds: Mapping[str, str], added: Sequence[str]
) -> PutRow:
    """A function that writes a row and what is added to it; a table's header is written at once.

    Args:
        file: open for text, with newline="".
        suffix: ".csv", ".tsv" or ".jsonl".
        columns, kinds: of the rows (see `veneer.data.tables.Stream`).
        added: names of the new columns.
    """
    if suffix == ".jsonl":

        def put_json(row: Mapping[str, Any], more: Mapping[str, Any]) -> None:
            values = {name: _value(row[name], kinds.get(name, "text")) for name in columns}
            file.write(json.dumps(values | dict(more), ensure_ascii=False) + "\n")

        return put_json
    table = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    table.writerow([*columns, *added])

    def put(row: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        table.writerow([*(row[name] for name in columns), *(as_cell(more[name]) for name in added)])

    return put


def as_cell(value: Any) -> Any:
    """A value of an answer as a cell of a table: several with | between them, what is nested as JSON."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else value


def _value(cell: Any, kind: str) -> Any:
    """A cell as it was in a file of JSON or parquet, where it was more than text."""
    if not isinstance(cell, str) or kind not in ("int", "float", "bool", "list", "object"):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell
