"""Delimited text -> Arrow batches, with the line number of every row that does not fit.

pyarrow reads; Python's csv module, which is slower and counts lines, reads once more only to say where a
fault is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from veneer.data.choices import counted
from veneer.data.sniff import DELIMITERS, CsvLayout, csv_quoting, long_fields
from veneer.errors import DataError
from veneer.naming import settable, setting

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["csv_batches"]

BLOCK_BYTES = 2 << 20  # no row may be longer; pyarrow reads about 40 blocks ahead


def csv_batches(path: Path, layout: CsvLayout, warnings: list[str]) -> Iterator[pa.RecordBatch]:
    """All rows as batches of string columns; adds to `warnings` when the end is reached.

    Raises `DataError` for rows with too few or too many fields, and for a quote that is never closed.
    """
    import pyarrow as pa

    last: pa.RecordBatch | None = None
    swallowed = 0
    try:
        for batch in _reader(path, layout):
            swallowed += _swallowed_rows(batch, layout)
            last = batch if batch.num_rows else last
            yield batch
    except pa.ArrowInvalid as error:
        raise _explained(path, layout, str(error)) from None
    if last is not None and _ends_in_open_quote(path, last.column(last.num_columns - 1)[-1].as_py()):
        raise _explained(path, layout, "a quote is never closed")
    if swallowed:
        warnings.append(
            f"{path.name}: {counted(swallowed, 'line')} with as many fields as a row "
            f"{'stands' if swallowed == 1 else 'stand'} inside of quoted fields. If the quotes of this "
            f"file are ordinary characters, {_unquoted()}."
        )


def _reader(path: Path, layout: CsvLayout) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    names = list(layout.columns)
    encoding = "utf8" if layout.encoding.lower() in ("utf-8", "utf8", "utf-8-sig") else layout.encoding
    reader = pacsv.open_csv(
        str(path),
        read_options=pacsv.ReadOptions(
            use_threads=False,
            block_size=BLOCK_BYTES,
            column_names=names,
            skip_rows_after_names=1 if layout.header else 0,
            encoding=encoding,
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=layout.delimiter,
            quote_char='"' if layout.quoting else False,
            newlines_in_values=layout.quoting,
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    yield from reader


def _swallowed_rows(batch: pa.RecordBatch, layout: CsvLayout) -> int:
    """How many lines inside of cells look like rows; only where the delimiter is rare in prose."""
    import pyarrow.compute as pc

    if not layout.quoting or layout.delimiter != "\t" or len(layout.columns) < 2:
        return 0
    pattern = r"\n[^\n\t]*" + r"\t[^\n\t]*" * (len(layout.columns) - 1)
    counts = [pc.sum(pc.count_substring_regex(column, pattern)).as_py() or 0 for column in batch.columns]
    return int(sum(counts))


def _ends_in_open_quote(path: Path, last: str) -> bool:
    """Whether the last cell runs on to the file's end: a reader takes all that follows an open quote."""
    if "\n" not in last and "\r" not in last:
        return False  # only a quoted cell holds line ends
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return not file.read().rstrip(b" \t\r\n\0").endswith(b'"')


def _explained(path: Path, layout: CsvLayout, fallback: str) -> DataError:
    """The fault that stopped pyarrow, found again with its line number."""
    expected, start, faults, row = len(layout.columns), 1, list[tuple[int, int]](), list[str]()
    before = 1
    with path.open(encoding=layout.encoding, newline="") as file, long_fields(BLOCK_BYTES):
        reader = csv.reader(file, delimiter=layout.delimiter, quoting=csv_quoting(layout.quoting))
        try:
            for row in reader:
                if row and len(row) != expected:
                    faults.append((start, len(row)))
                before, start = start, reader.line_num + 1
            open_at = before if row and layout.quoting and _ends_in_open_quote(path, row[-1]) else None
        except csv.Error:  # the field is longer than any text
            more = f"{BLOCK_BYTES:,} characters are no field; most likely a quote"
            return DataError(f"{path}: {more} {_open_quote(start)}")
    if open_at is not None and (not faults or faults[0][0] == open_at):
        return DataError(f"{path}: a quote {_open_quote(open_at)}")
    if faults:
        return DataError(_ragged(path, layout, faults))
    if "straddling" in fallback:
        fallback = (
            f"a row is longer than {BLOCK_BYTES:,} bytes; leave it out, or give the rows as jsonl or parquet"
        )
    return DataError(
        f"{path} can't be read as {DELIMITERS.get(layout.delimiter, 'delimited')} text: {fallback}"
    )


def _open_quote(line: int) -> str:
    mends = "Close it, or double it if it is part of the text"
    if settable("data.quoting"):
        mends = f"Close it, double it if it is part of the text, or {_unquoted()} if its quotes are only characters"
    return f"opened in the row of line {line} is never closed. {mends}."


def _unquoted() -> str:
    if not settable("data.quoting"):
        return "double them or take them out"
    return f"read the file with quoting off ({setting('data.quoting', 'no')})"


def _or_delimiter() -> str:
    if not settable("data.delimiter"):
        return ""
    return f"; or give the right delimiter ({setting('data.delimiter', 'CHAR')})"


def _ragged(path: Path, layout: CsvLayout, faults: list[tuple[int, int]]) -> str:
    line, fields = faults[0]
    sign = DELIMITERS.get(layout.delimiter, repr(layout.delimiter))
    more = f" (and {counted(len(faults) - 1, 'more line')} like it)" if len(faults) > 1 else ""
    mend = (
        f"A text that holds a {sign} has to stand in double quotes"
        if fields > len(layout.columns)
        else "A field is missing there"
    )
    return (
        f"{path}, line {line}: {counted(fields, 'field')}, expected {len(layout.columns)} "
        f"({', '.join(layout.columns[:6])}){more}. {mend}{_or_delimiter()}."
    )
