"""Reading for a trained model: rows streamed with their columns, and labelled files with known labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tables import phrase, write_csv

from veneer.data import LabelForm, LabelSet, labelled, read_texts
from veneer.errors import DataError

TEXTS = [phrase(i) for i in range(50)]


def test_rows_come_with_all_their_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", {"id": range(50), "message": TEXTS})
    stream = read_texts(path)
    assert (stream.columns, stream.text_column) == (("id", "message"), "message")
    assert list(stream) == [({"id": str(i), "message": text}, text) for i, text in enumerate(TEXTS)]


def test_one_column_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Hello you\nHow are things\nFine\n")
    assert [text for _, text in read_texts(tmp_path / "x.csv")] == ["Hello you", "How are things", "Fine"]


def test_a_text_file_is_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text('text, with "signs\nand\ttab; |\n')
    assert [text for _, text in read_texts(tmp_path / "x.txt")] == ['text, with "signs', "and\ttab; |"]


def test_json_lines_and_missing_texts(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "one", "n": 1}\n{"text": null, "n": 2}\n')
    stream = read_texts(tmp_path / "x.jsonl", "text")
    assert [text for _, text in stream] == ["one", ""]
    with pytest.raises(DataError, match=r"no column 'txt' \(text column\). Did you mean 'text'"):
        read_texts(tmp_path / "x.jsonl", "txt")


def test_a_labelled_file_with_known_labels(tmp_path: Path) -> None:
    labels = LabelSet(("a", "b", "c"))
    path = write_csv(tmp_path / "x.csv", {"text": [*TEXTS, ""], "label": ["ba"[i % 2] for i in range(51)]})
    split, notes = labelled(path, labels)
    assert split.texts() == TEXTS
    assert split.labels.tolist() == [1, 0] * 25
    assert notes.counts == {"rows": 51, "empty_texts": 1, "missing_labels": 0}
    with pytest.raises(DataError, match=r"1 label that training does not know: 'a' \(25 rows\)"):
        labelled(path, LabelSet(("b", "c")))


def test_labels_of_another_spelling_match(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", {"text": TEXTS, "label": [f"{i % 2}.0" for i in range(50)]})
    split, _ = labelled(path, LabelSet(("0", "1"), "int"), text_column="text", label_column="label")
    assert split.labels.tolist() == [0, 1] * 25
    path = write_csv(tmp_path / "y.csv", {"text": TEXTS, "label": ["x|y", "y"] * 25})
    split, _ = labelled(path, LabelSet(("x", "y")), LabelForm(multi=True, separator="|"))
    assert split.labels[:2].tolist() == [[1, 1], [0, 1]]
