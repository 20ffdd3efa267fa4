"""Parquet files, and Arrow batches from elsewhere, -> batches of text columns.

It knows Arrow types, and nothing of files of text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from veneer.data.tables import ROWS_PER_BATCH, Stream
from veneer.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["as_text_batches", "kind_of", "parquet_bytes", "parquet_stream"]


def parquet_stream(path: Path) -> Stream:
    """A parquet file as a stream of text columns. Raises `DataError` where it is none, or is damaged."""
    file = _open(path)
    if not file.metadata.num_rows:
        raise DataError(f"{path} holds no rows; a table with a text in each row was expected.")
    schema = file.schema_arrow
    kinds = {name: kind_of(schema.field(name).type) for name in schema.names}
    return Stream(
        path, tuple(schema.names), kinds, as_text_batches(file.iter_batches(batch_size=ROWS_PER_BATCH))
    )


def parquet_bytes(path: Path) -> int:
    """The size of all columns, not compressed."""
    metadata = _open(path).metadata
    return sum(int(metadata.row_group(place).total_byte_size) for place in range(metadata.num_row_groups))


def _open(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(str(path), memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} can't be read as parquet: {error}") from None


def kind_of(kind: pa.DataType) -> str:
    """The kind of a column, in the words of `Stream`."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    tests = {
        "string": lambda t: types.is_string(t) or types.is_large_string(t) or types.is_string_view(t),
        "int": types.is_integer,
        "bool": types.is_boolean,
        "float": lambda t: types.is_floating(t) or types.is_decimal(t),
        "list": lambda t: types.is_list(t) or types.is_large_list(t) or types.is_fixed_size_list(t),
        "object": types.is_nested,
    }
    return next((name for name, test in tests.items() if test(kind)), "string")


def as_text_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Each batch with every column as strings: numbers as written in JSON, lists and objects as JSON."""
    import pyarrow as pa

    for batch in batches:
        arrays = [_as_text(batch.column(place)) for place in range(batch.num_columns)]
        yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _as_text(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_nested(array.type):
        cells = [
            None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in array.to_pylist()
        ]
        return pa.array(cells, pa.string())
    return array.cast(pa.string())
