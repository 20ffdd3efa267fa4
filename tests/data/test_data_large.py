"""Large files: converted once, mapped into memory, and never held whole."""

from __future__ import annotations

import gc
from pathlib import Path

import pyarrow as pa
import pytest

from veneer.data import DataConfig, csv_rows, prepare, read_table, read_texts, tables
from veneer.data.rows import Split

N = 300_000
FILLER = "some more words that make this row a little longer than it has to be " * 2


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv file of 300,000 rows and 50 MB."""
    path = tmp_path_factory.mktemp("large") / "large.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for start in range(0, N, 10_000):
            file.write("".join(f"row {i} {FILLER},{i % 5}\n" for i in range(start, start + 10_000)))
    return path


def test_a_large_file_stays_on_the_disk(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path))
    monkeypatch.setattr(tables, "LARGE_FILE_BYTES", 1_000_000)
    gc.collect()
    before = pa.total_allocated_bytes()
    prepared = prepare(DataConfig(source=str(large), test_fraction=0.1, validation_fraction=0.01))
    assert [len(split) for split in prepared.splits] == [267_000, 3_000, 30_000]
    assert prepared.test.texts(29_999)[0].startswith("row ")
    gc.collect()
    # the rows take 50 MB; what pyarrow still holds has to be far below that
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert prepared.train.table.data.nbytes > 40_000_000

    copies = list(tmp_path.rglob("*.arrow"))
    assert len(copies) == 1
    written = copies[0].stat().st_mtime_ns
    again = read_table(large)
    assert copies[0].stat().st_mtime_ns == written
    assert again.choices == prepared.train.table.choices


def test_a_changed_file_is_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "LARGE_FILE_BYTES", 10)
    path = tmp_path / "x.csv"
    path.write_text("text,label\none two,a\nthree four,b\n")
    assert len(read_table(path)) == 2
    path.write_text("text,label\none two,a\nthree four,b\nfive six,b\n")
    assert len(read_table(path)) == 3
    assert len(list(tmp_path.rglob("*.arrow"))) == 1


def test_answering_a_large_file_streams(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK_BYTES", 1 << 17)  # small, as the test's file is: 40 are read ahead
    before = pa.total_allocated_bytes()
    most = n = 0
    for row, text in read_texts(large):
        assert text is row["text"]
        n += 1
        if n % 20_000 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
    assert n == N
    assert most < 20_000_000  # of a file of 50 MB


def test_a_split_reads_only_what_it_is_asked_for(large: Path) -> None:
    table = read_table(large)
    rows = prepare(DataConfig(source=str(large), max_rows=50)).train.rows
    split = Split("train", table, "text", rows, rows)
    assert [text.split()[1] for text in split.texts()] == [str(row) for row in rows]
