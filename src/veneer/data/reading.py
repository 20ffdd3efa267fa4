"""Texts for a model that is already trained: a file to answer row by row, and a labelled file to measure on.

`read_inputs` streams, so that a file of any size can be answered; nothing here infers labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from veneer.data.choices import Choice, Notes
from veneer.data.infer import find_text_column
from veneer.data.labels import LabelSet
from veneer.data.pairs import find_pair
from veneer.data.rows import LabelForm, Split, choose_columns, label_rows
from veneer.data.tables import Stream, Table, TableOptions, as_lines, open_stream, read_table
from veneer.errors import DataError
from veneer.naming import setting

__all__ = ["TextStream", "labelled", "read_inputs", "read_texts", "text_or_file"]


class TextStream(Iterator[tuple[dict[str, Any], "str | Mapping[str, str]"]]):
    """(row, input) for each row of a file: the row with all its columns, and what is read of it: the text in it (""
    where missing), or several texts by name.

    columns       the names of the columns, in the file's order
    kinds         column -> what its cells are (see `Stream`)
    read          input -> the column it is read from
    choices       what was inferred
    """

    def __init__(
        self, stream: Stream, names: Sequence[str], given: Mapping[str, str], known: Mapping[str, str]
    ) -> None:
        import pyarrow as pa

        first = next((batch for batch in stream.batches if batch.num_rows), None)
        if first is None:
            raise DataError(f"{stream.path} holds no rows; a text in each row was expected.")
        self.columns, self.kinds = stream.columns, stream.kinds
        top = Table(stream.path, pa.Table.from_batches([first]), stream.kinds)
        self.read, found = _columns_to_read(top, tuple(names), given, known)
        self.choices = (*stream.choices, *found)
        self._rows = self._iterate(first, stream)

    @property
    def text_column(self) -> str:
        """The column of the first text."""
        return next(iter(self.read.values()))

    def __next__(self) -> tuple[dict[str, Any], str | Mapping[str, str]]:
        return next(self._rows)

    def _iterate(
        self, first: Any, stream: Stream
    ) -> Iterator[tuple[dict[str, Any], str | Mapping[str, str]]]:
        batch, alone = first, self.text_column if len(self.read) == 1 else None
        while batch is not None:
            for row in batch.to_pylist():
                if alone is not None:
                    yield row, row[alone] or ""
                else:
                    yield row, {name: row[column] or "" for name, column in self.read.items()}
            batch = next(stream.batches, None)


def _columns_to_read(
    table: Table, names: tuple[str, ...], given: Mapping[str, str], known: Mapping[str, str]
) -> tuple[dict[str, str], list[Choice]]:
    """Input -> column: as given, else as trained, else a column of that name, else inferred."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise DataError(
            f"{', '.join(unknown)}: this adapter reads {', '.join(names)} of each row; name columns for those."
        )
    if len(names) == 1:
        if not given and len(table.columns) == 1:
            return {names[0]: table.columns[0]}, []
        column, choice = find_text_column(table, given.get(names[0]))
        return {names[0]: column}, [choice] if choice else []
    found = {name: find_text_column(table, column)[0] for name, column in given.items()}
    found |= {name: known[name] for name in names if name not in found and known.get(name) in table.columns}
    found |= {name: name for name in names if name not in found and name in table.columns}
    pair = find_pair(table) if names == ("text", "text_pair") and not found else None
    if pair is not None:
        return dict(zip(names, pair[:2], strict=True)), [pair[2]]
    missing = [name for name in names if name not in found]
    if missing:
        said = (
            setting(f"data.{missing[0]}_column", "NAME")
            if missing[0] in ("text", "text_pair")
            else setting("data.columns", {missing[0]: "NAME"})
        )
        raise DataError(
            f"{table.path}: which column is the {missing[0]}? Columns: {', '.join(table.columns)}. Say which with "
            f"{said}."
        )
    return {name: found[name] for name in names}, []


def read_inputs(
    path: str | Path,
    names: Sequence[str] = ("text",),
    given: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
    options: TableOptions | None = None,
) -> TextStream:
    """The rows of a file with what is to be read of each, streamed. A .txt file is a text a line, without a header.

    Args:
        path: the file.
        names: what is read of a row: ("text",), ("text", "text_pair"), ("question", "context").
        given: input -> column, as a person said; must exist.
        known: input -> column of training; taken where the file has it.
        options: how the file is written; None: inferred.

    Raises:
        DataError: the file can't be read, or it is not clear which column is which.
    """
    path = Path(path)
    return TextStream(open_stream(path, as_lines(path, options)), names, given or {}, known or {})


def read_texts(
    path: str | Path, text_column: str | None = None, options: TableOptions | None = None
) -> TextStream:
    """`read_inputs` of one text a row."""
    return read_inputs(path, ("text",), {"text": text_column} if text_column else None, options=options)


def text_or_file(given: str, what: str) -> tuple[str, Choice | None]:
    """The text, or that of the file that it names, with a note on that.

    Raises:
        DataError: a file that is not UTF-8, or is empty; a name as of a text file, and there is no such file.
    """
    try:
        is_file = Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or with a character that no name has
        is_file = False
    if not is_file:
        if given.endswith((".txt", ".md")) and not any(map(str.isspace, given)):
            raise DataError(
                f"--{what} {given}: there is no such file. Give the name of one, or the text itself."
            )
        return given, None
    try:
        # line ends are characters of the text
        with Path(given).open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--{what} {given} can't be read as UTF-8 text ({error}).") from error
    if not text.strip():
        raise DataError(f"--{what} {given} is empty; there is nothing to read.")
    return text, Choice(what, f"{given}, {len(text):,} characters", "there is a file of that name")


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
