"""Texts for a model that is already trained: a file to answer row by row, and a labelled file to measure on.

`read_texts` streams, so that a file of any size can be answered; nothing here infers labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veneer.data.choices import Notes
from veneer.data.infer import find_text_column
from veneer.data.labels import LabelSet
from veneer.data.rows import LabelForm, Split, choose_columns, label_rows
from veneer.data.tables import Stream, Table, TableOptions, open_stream, read_table
from veneer.errors import DataError

__all__ = ["TextStream", "labelled", "read_texts"]


class TextStream(Iterator[tuple[dict[str, Any], str]]):
    """(row, text) for each row of a file: the row with all its columns, and the text in it ("" where
    missing).

    columns       the names of the columns, in the file's order
    kinds         column -> what its cells are (see `Stream`)
    text_column   which of them is read
    choices       what was inferred
    """

    def __init__(self, stream: Stream, text_column: str | None) -> None:
        import pyarrow as pa

        first = next((batch for batch in stream.batches if batch.num_rows), None)
        if first is None:
            raise DataError(f"{stream.path} holds no rows; a text in each row was expected.")
        self.columns, self.kinds = stream.columns, stream.kinds
        choices = list(stream.choices)
        if text_column is None and len(stream.columns) == 1:
            self.text_column = stream.columns[0]
        else:
            top = Table(stream.path, pa.Table.from_batches([first]), stream.kinds)
            self.text_column, choice = find_text_column(top, text_column)
            choices += [choice] if choice else []
        self.choices = tuple(choices)
        self._rows = self._iterate(first, stream)

    def __next__(self) -> tuple[dict[str, Any], str]:
        return next(self._rows)

    def _iterate(self, first: Any, stream: Stream) -> Iterator[tuple[dict[str, Any], str]]:
        batch = first
        while batch is not None:
            for row in batch.to_pylist():
                yield row, row[self.text_column] or ""
            batch = next(stream.batches, None)


def read_texts(
    path: str | Path, text_column: str | None = None, options: TableOptions | None = None
) -> TextStream:
    """The rows of a file with the text in each, streamed. A .txt file is a text a line, without a header.

    Raises `DataError` for a file that can't be read, and where it is not clear which column is the text.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt" and options is None:
        options = TableOptions(format="csv", delimiter="\x1f", header=False, quoting=False)
    return TextStream(open_stream(path, options), text_column)


def labelled(
    path: str | Path,
    labels: LabelSet,
    form: LabelForm | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    pair_column: str | None = None,
    options: TableOptions | None = None,
    on_missing_label: str = "error",
) -> tuple[Split, Notes]:
    """A file as a test split with labels that are already known, and what was said while reading it.

    Column names that the file does not have are inferred. Raises `DataError` for labels that are not in
    `labels`, naming them.
    """
    table = read_table(path, options)
    columns, choices = choose_columns(table, text_column, label_column, pair_column)
    notes = Notes([*table.choices, *choices], list(table.warnings))
    rows = label_rows(
        table,
        columns,
        labels,
        form or LabelForm(),
        on_missing_label=on_missing_label,
        on_empty_text="drop",
        notes=notes,
    )
    if not rows.keep.any():
        raise DataError(f"{path}: no row has both a text and a label.")
    return rows.split("test", rows.kept), notes
