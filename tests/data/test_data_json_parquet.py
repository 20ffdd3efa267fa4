"""JSON, JSON lines and parquet: the same rows as the libraries that wrote them, and where a fault is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veneer.data import json_rows
from veneer.data.json_rows import iterate_json
from veneer.data.tables import read_table
from veneer.errors import DataError

RECORDS: list[dict[str, Any]] = [
    {"text": 'Grüße, "you"\n', "label": 1, "tags": ["a", "b"], "ok": True, "x": 0.5},
    {"text": None, "label": 2, "tags": [], "ok": False, "x": 1},
]
KINDS = {"text": "string", "label": "int", "tags": "list", "ok": "bool", "x": "float"}
CELLS = {"text": [RECORDS[0]["text"], None], "label": ["1", "2"], "ok": ["true", "false"]}


def check_rows(path: Path) -> None:
    table = read_table(path)
    assert table.kinds == KINDS
    for name, cells in CELLS.items():
        assert [cell for piece in table.cells(name) for cell in piece] == cells
    assert [json.loads(cell or "") for piece in table.cells("tags") for cell in piece] == [["a", "b"], []]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "data.json", "no_suffix"])
def test_json_in_every_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    forms = {
        "x.json": json.dumps(RECORDS, indent=2),
        "x.jsonl": "\n\n".join(map(json.dumps, RECORDS)),
        "data.json": json.dumps({"version": {"n": [1]}, "data": RECORDS, "more": 1}),
        "no_suffix": json.dumps(RECORDS),
    }
    path.write_text(forms[name], encoding="utf-8")
    check_rows(path)


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "x.parquet")
    check_rows(tmp_path / "x.parquet")


def test_parquet_categories_are_their_values(tmp_path: Path) -> None:
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    pq.write_table(pa.table({"text": ["x", "y", "z"], "label": labels}), tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet")
    assert table.kinds["label"] == "string"
    assert list(table.cells("label")) == [["b", "a", "b"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": }\n', r"x.jsonl, line 2: not valid JSON"),
        ("x.jsonl", '{"text": "a"}\n[1]\n', r"line 2: expected an object.*found a list"),
        ("x.json", '[{"text": "a"},\n {"text": b}]', r"x.json, line 2: not valid JSON"),
        ("x.json", '[{"text": "a"},\n {"text": "b"}', r"cut off"),
        ("x.json", "[" * 100_000, r"hundreds of levels deep"),
        ("x.jsonl", '{"text": ' + "[" * 100_000 + "\n", r"line 1: lists or objects stand in each other"),
        ("x.json", '[{"text": "a"}\n {"text": "b"}]', r"line 2: expected ',', found '{'"),
        ("x.json", '["a"]', r"record 1: expected an object"),
        ("x.json", '"a"', r"expected a list of records"),
        ("x.json", '{"rows": []}', r"without the key \"data\" \(keys: rows\)"),
        ("x.json", "[]", r"holds no records"),
        ("x.jsonl", "\n \n", r"holds no records"),
        ("x.parquet", "text", r"can't be read as parquet"),
    ],
)
def test_a_bad_file_names_its_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_a_key_that_comes_late_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' * 20_000 + '{"txet": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"record 20001: the key 'txet' is in no earlier record"):
        read_table(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=4), max_size=8),
    indent=st.sampled_from([None, 1]),
    chunk=st.integers(1, 50),
)
def test_streaming_reads_what_json_reads(
    tmp_path: Path, records: list[dict[str, Any]], indent: int | None, chunk: int
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8")
    before, json_rows._CHUNK = json_rows._CHUNK, chunk
    try:
        assert list(iterate_json(path, "utf-8")) == records
    finally:
        json_rows._CHUNK = before


def test_the_instruction_data_reads_as_json_reads_it(shared_data: Path) -> None:
    path = shared_data / "instruction" / "instruction-data.json"
    table = read_table(path)
    assert table.data.to_pylist() == json.loads(path.read_text(encoding="utf-8"))
