"""A folder as a source: which file is which part."""

from __future__ import annotations

from pathlib import Path

import pytest

from veneer.data.config import DataConfig
from veneer.data.folders import split_files
from veneer.data.prepare import prepare
from veneer.data.sources import Source
from veneer.errors import DataError

ROWS = "text,label\n" + "".join(f"{{}} text {n},{'ab'[n % 2]}\n" for n in range(40))


@pytest.mark.parametrize(
    "names",
    [
        {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"},
        {"train": "train.csv", "test": "test.csv"},
        {"train": "train-00000-of-00001.parquet", "validation": "validation-00000-of-00001.parquet"},
        {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"},
        {"train": "SNLI-train.jsonl"},
    ],
)
def test_files_are_told_by_their_names(tmp_path: Path, names: dict[str, str]) -> None:
    for name in [*names.values(), "README.md", "latest.csv", ".train.csv", "notes.txt"]:
        (tmp_path / name).write_text("x")
    assert split_files(tmp_path) == {part: tmp_path / name for part, name in names.items()}


def test_what_is_not_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file in it has 'train' in its name \(files: none\)"):
        split_files(tmp_path)
    (tmp_path / "pos").mkdir()
    with pytest.raises(
        DataError, match=r"Folders in it \(pos\) are not read: write their texts into one table"
    ):
        split_files(tmp_path)
    for name in ("train-1.csv", "train-2.csv"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"several files could be the train part: train-1\.csv, train-2\.csv"):
        split_files(tmp_path)


def test_parts_of_a_folder_are_the_parts(tmp_path: Path) -> None:
    for part in ("train", "dev", "test"):
        (tmp_path / f"my.{part}.csv").write_text(ROWS.replace("{}", part))
    found = prepare(DataConfig(source=str(tmp_path)))
    assert [split[0].split()[0] for split in found.splits] == ["train", "dev", "test"]
    assert [len(split) for split in found.splits] == [40, 40, 40]
    assert any(
        "train: my.train.csv, validation: my.dev.csv, test: my.test.csv" in str(c) for c in found.choices
    )
    own = tmp_path / "other.csv"
    own.write_text(ROWS.replace("{}", "own"))
    found = prepare(DataConfig(source=str(tmp_path), test=str(own)))
    assert found.test[0].startswith("own")
    part = Source(DataConfig(source=str(tmp_path))).part("validation")
    assert part is not None
    assert len(part.loaded.table) == 40
