"""Any supported file -> a `Table` of text columns, in bounded memory.

A large file is converted once to an Arrow file in the cache folder and mapped into memory; a small one stays
in memory. Every cell is text here; `kinds` remembers what it was. This module knows nothing of labels and
splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice
from veneer.data.json_rows import iterate_json, iterate_json_lines
from veneer.data.sniff import check_readable, find_encoding, find_layout
from veneer.data.squad import flat_records
from veneer.errors import DataError
from veneer.files import cache_folder, replacing_file

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FILE_SUFFIXES",
    "LARGE_FILE_BYTES",
    "Stream",
    "Table",
    "TableOptions",
    "open_stream",
    "read_table",
]

LARGE_FILE_BYTES = 200_000_000
ROWS_PER_BATCH = 16_384
FILE_SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet", ".conll": "conll", ".conllu": "conll", ".bio": "conll", ".iob": "conll",
}  # fmt: skip


@dataclass(frozen=True)
class TableOptions:
    """How a file is written; None means: infer.

    format      "csv" (any delimited text), "tsv", "json", "jsonl", "parquet" or "conll"; inferred from the name
                and the top
    delimiter   one character
    encoding    a name that Python knows
    header      whether the first line holds names
    quoting     whether double quotes enclose fields (True), or are characters as any other (False)
    """

    format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    header: bool | None = None
    quoting: bool | None = None


@dataclass
class Stream:
    """A file being read once, batch by batch.

    batches   Arrow record batches of string columns, a missing cell is null
    kinds     column -> what its cells were: "text" (csv), "string", "int", "float", "bool", "list", "object"
              or "mixed". It is complete when `batches` is used up; cells of lists and objects are JSON.
    """

    path: Path
    columns: tuple[str, ...]
    kinds: dict[str, str]
    batches: Iterator[pa.RecordBatch]
    choices: tuple[Choice, ...] = ()
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Rows and named columns of text, in memory or mapped from a file; see `Stream` for `kinds`."""

    path: Path
    data: pa.Table
    kinds: Mapping[str, str]
    choices: tuple[Choice, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.data.num_rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in the file's order."""
        return tuple(self.data.column_names)

    def cells(self, column: str) -> Iterator[list[str | None]]:
        """All cells of a column, a list for each piece of at most `ROWS_PER_BATCH` rows."""
        for chunk in self.data.column(column).chunks:
            for start in range(0, len(chunk), ROWS_PER_BATCH):
                yield chunk.slice(start, ROWS_PER_BATCH).to_pylist()

    def take(self, column: str, rows: NDArray[np.int64]) -> list[str | None]:
        """The cells of some rows, in the order of `rows` (n,), int64."""
        chunks = self.data.column(column).chunks
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        which = np.searchsorted(starts, rows, side="right") - 1
        taken: list[str | None] = [None] * len(rows)
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            cells = chunks[number].take(rows[here] - starts[number]).to_pylist()
            for place, cell in zip(here.tolist(), cells, strict=True):
                taken[place] = cell
        return taken

    def row(self, number: int) -> dict[str, str | None]:
        """One row as a mapping."""
        return {c: self.take(c, np.array([number], dtype=np.int64))[0] for c in self.columns}


def read_table(path: str | Path, options: TableOptions | None = None) -> Table:
    """The whole file as a table. Raises `DataError` for every fault of the file, with its place and the mend."""
    import pyarrow as pa

    path, options = Path(path), options or TableOptions()
    check_readable(path)
    if _expanded_bytes(path) > LARGE_FILE_BYTES:
        return _mapped(path, options)
    stream = open_stream(path, options)
    schema = pa.schema([(name, pa.string()) for name in stream.columns])
    data = pa.Table.from_batches(list(stream.batches), schema).combine_chunks()
    return _finish(stream, data)


def open_stream(path: str | Path, options: TableOptions | None = None) -> Stream:
    """The file as a stream of batches, nothing kept; for files of any size that are read once."""
    path, options = Path(path), options or TableOptions()
    check_readable(path)
    form = options.format or FILE_SUFFIXES.get(path.suffix.lower()) or _form_from_top(path)
    if form == "parquet":
        from veneer.data.parquet_rows import parquet_stream

        return parquet_stream(path)
    encoding, choice = find_encoding(path, options.encoding)
    choices = [choice] if choice else []
    if form in ("json", "jsonl"):
        return _json_stream(path, form, encoding, choices)
    if form == "conll" or (form in ("csv", "tsv") and _open_to_infer(options) and _is_conll(path, encoding)):
        from veneer.data.conll_rows import conll_stream

        return conll_stream(path, encoding, tuple(choices))
    from veneer.data.csv_rows import csv_batches

    delimiter = "\t" if options.format == "tsv" and options.delimiter is None else options.delimiter
    layout, more = find_layout(path, encoding, delimiter, options.header, options.quoting)
    warnings: list[str] = []
    kinds = dict.fromkeys(layout.columns, "text")
    batches = csv_batches(path, layout, warnings)
    return Stream(path, layout.columns, kinds, batches, (*choices, *more), warnings)


def as_lines(path: Path, options: TableOptions | None) -> TableOptions | None:
    """How a file is read whose texts are lines: a .txt, unless something is said of its columns."""
    if path.suffix.lower() != ".txt" or not _open_to_infer(options or TableOptions()):
        return options
    return TableOptions("csv", "\x1f", options.encoding if options else None, header=False, quoting=False)


def _open_to_infer(options: TableOptions) -> bool:
    """Whether nobody said how the file is written."""
    return options.format is None and options.delimiter is None and options.header is None


def _is_conll(path: Path, encoding: str) -> bool:
    from veneer.data.conll_rows import looks_like_conll

    return looks_like_conll(path, encoding)


def _expanded_bytes(path: Path) -> int:
    """About how much the file holds when it is read: a parquet file is compressed."""
    if FILE_SUFFIXES.get(path.suffix.lower()) != "parquet":
        return path.stat().st_size
    from veneer.data.parquet_rows import parquet_bytes

    return parquet_bytes(path)


def _form_from_top(path: Path) -> str:
    """The format of a file whose name does not tell."""
    with path.open("rb") as file:
        top = file.read(4096)
    if top.startswith(b"PAR1"):
        return "parquet"
    text = top.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"[{") or (text.startswith(b"[") and text[1:].lstrip().startswith(b"{")):
        return "json"
    if text.startswith(b'{"'):
        return "json" if text[1:].lstrip().startswith(b'"data"') else "jsonl"
    return "csv"


def _finish(stream: Stream, data: pa.Table) -> Table:
    if not data.num_rows:
        raise DataError(f"{stream.path} holds no rows; a table with a text in each row was expected.")
    return Table(stream.path, data, dict(stream.kinds), stream.choices, tuple(stream.warnings))


def _mapped(path: Path, options: TableOptions) -> Table:
    """The table of a large file, mapped from its converted copy in the cache folder."""
    import pyarrow as pa

    stat = path.stat()
    key = hashlib.sha256(f"1 {path.resolve()} {options}".encode()).hexdigest()[:24]
    folder = cache_folder("tables", key)
    target = folder / f"{stat.st_mtime_ns}-{stat.st_size}.arrow"
    notes = target.with_suffix(".json")
    if not (target.exists() and notes.exists()):
        for old in folder.iterdir():  # of an earlier state of the same file
            old.unlink()
        stream = open_stream(path, options)
        schema = pa.schema([(name, pa.string()) for name in stream.columns])
        with replacing_file(target) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
            for batch in stream.batches:
                writer.write_batch(batch)
        facts = {
            "kinds": stream.kinds,
            "choices": [[c.what, c.value, c.reason] for c in stream.choices],
            "warnings": stream.warnings,
        }
        with replacing_file(notes) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")
    facts = json.loads(notes.read_text(encoding="utf-8"))
    data = pa.ipc.open_file(pa.memory_map(str(target))).read_all()
    choices = tuple(Choice(*parts) for parts in facts["choices"])
    return _finish(
        Stream(path, tuple(data.column_names), facts["kinds"], iter(()), choices, facts["warnings"]), data
    )


def _json_stream(path: Path, form: str, encoding: str, choices: list[Choice]) -> Stream:
    found = iterate_json_lines(path, encoding) if form == "jsonl" else iterate_json(path, encoding)
    records = flat_records(found, str(path))
    first = list(islice(records, ROWS_PER_BATCH))
    if not first:
        raise DataError(f"{path} holds no records; a list of objects, one for each text, was expected.")
    columns = tuple(dict.fromkeys(name for record in first for name in record))
    kinds: dict[str, str] = {}
    return Stream(path, columns, kinds, _json_batches(path, columns, kinds, first, records), tuple(choices))


def _json_batches(
    path: Path, columns: Sequence[str], kinds: dict[str, str], first: list[Any], rest: Iterator[Any]
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    done, records = 0, first
    known = set(columns)
    while records:
        for number, record in enumerate(records, start=done + 1):
            if not known.issuperset(record):
                extra = sorted(set(record) - known)[0]
                raise DataError(
                    f"{path}, record {number}: the key {extra!r} is in no earlier record (keys so far: "
                    f"{', '.join(columns)}). Give all records the same keys."
                )
        arrays = [pa.array([_cell(r.get(c), c, kinds) for r in records], pa.string()) for c in columns]
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
        done += len(records)
        records = list(islice(rest, ROWS_PER_BATCH))


_KINDS = {str: "string", bool: "bool", int: "int", float: "float", list: "list", dict: "object"}


def _cell(value: Any, column: str, kinds: dict[str, str]) -> str | None:
    """A JSON value as the text of a cell; notes its kind. Texts stay as they are, all else is written as JSON."""
    if value is None:
        return None
    kind = _KINDS[type(value)]
    seen = kinds.setdefault(column, kind)
    if seen != kind:
        kinds[column] = "float" if {seen, kind} == {"int", "float"} else "mixed"
    return value if kind == "string" else json.dumps(value, ensure_ascii=False)
