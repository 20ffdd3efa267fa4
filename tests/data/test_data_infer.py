"""Which column is what: found with a reason, or asked for by name, never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_tables import phrase, write_csv

from veneer.data.infer import column_facts, find_label_column, find_text_column, infer_task
from veneer.data.rows import choose_columns
from veneer.data.tables import Table, read_table
from veneer.errors import DataError

N = 60
TEXTS = [phrase(i) for i in range(N)]
LABELS = ["abc"[i % 3] for i in range(N)]


def table(tmp_path: Path, **columns: object) -> Table:
    return read_table(write_csv(tmp_path / "x.csv", columns))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "expected", "reason"),
    [
        ({"label": LABELS, "text": TEXTS}, ("text", "label"), "its name"),
        ({"first": TEXTS, "second": LABELS}, ("first", "second"), "the only column of several words"),
        ({"Message": TEXTS, "Category": LABELS, "id": range(N)}, ("Message", "Category"), "its name"),
        (
            {"Tweet text": TEXTS, "air_sentiment": LABELS, "u": LABELS},
            ("Tweet text", "air_sentiment"),
            "a word of its",
        ),
        ({"said": TEXTS, "kind": LABELS, "day": ["2020"] * N}, ("said", "kind"), "the only column"),
        ({"text": TEXTS, "label": LABELS, "source": LABELS}, ("text", "label"), "its name"),
        ({"text": TEXTS, "body": TEXTS[::-1], "label": LABELS}, ("text", "label"), "also possible: 'body'"),
        (
            {"key": [f"id-{i:04}" for i in range(N)], "said": TEXTS, "kind": LABELS},
            ("said", "kind"),
            "several words",
        ),
        (
            {"tweet": TEXTS, "sentiment": [i % 2 for i in range(N)], "n": range(N)},
            ("tweet", "sentiment"),
            "name",
        ),
    ],
)
def test_columns_are_found_with_a_reason(
    tmp_path: Path, columns: dict[str, object], expected: tuple[str, str], reason: str
) -> None:
    found, choices = choose_columns(table(tmp_path, **columns), None, None)
    assert (found.text, found.label) == expected
    assert [choice.what for choice in choices] == ["text column", "label column"]
    assert reason in choices[0].reason


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"one": TEXTS, "two": TEXTS[::-1], "label": LABELS},
            r"which column is the text\? .*'one'.*'two'.*"
            r"text_column\. To read both together: text_column='one' text_pair_column='two'\.",
        ),
        ({"premise": TEXTS, "sentence": TEXTS[::-1], "label": LABELS}, r"which column is the text"),
        (
            {"text": TEXTS, "one": LABELS, "two": LABELS},
            r"which column is the label\? .*'one'.*'two'.*label_column",
        ),
        ({"text": TEXTS, "label": range(N)}, r"no column looks like a label.*label_column"),
        ({"n": range(N), "label": LABELS}, r"no column looks like a text.*text_column"),
        ({"text": TEXTS}, r"single column \(text\).*delimiter"),
    ],
)
def test_an_unclear_table_is_an_error_with_the_flag(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        choose_columns(table(tmp_path, **columns), None, None)


def test_a_column_that_is_given_is_checked(tmp_path: Path) -> None:
    one = table(tmp_path, text=TEXTS, other=TEXTS[::-1], label=LABELS)
    assert find_text_column(one, "other") == ("other", None)
    with pytest.raises(DataError, match=r"no column 'lable' \(label column\). Did you mean 'label'"):
        find_label_column(one, "lable")


def test_what_has_another_use_and_what_lies_in_objects_is_said(tmp_path: Path) -> None:
    path = tmp_path / "nested.jsonl"
    path.write_text("".join(json.dumps({"text": text, "meta": {"label": "a"}}) + "\n" for text in TEXTS))
    with pytest.raises(DataError, match=r"Fields inside of objects \('meta'\) are not read"):
        choose_columns(read_table(path), None, None)
    with pytest.raises(DataError, match=r"no column looks like a text .* Taken for something else: 'text'\."):
        choose_columns(read_table(path), None, "text")


def test_facts_are_counted(tmp_path: Path) -> None:
    facts = column_facts(
        table(tmp_path, text=["one two", "", " ", "three four"], label=["1", "2.5", "3", ""]), "label"
    )
    assert (facts.cells, facts.distinct, facts.numeric) == (3, 3, 1.0)
    assert facts.whole == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("labels", "task", "separator"),
    [
        (LABELS, "classification", None),
        ([i % 5 for i in range(N)], "classification", None),
        ([i / 7 for i in range(N)], "regression", None),
        ([i * 3 for i in range(N)], "regression", None),
        ([f"{i % 7},50" for i in range(N)], "regression", None),  # refused by row and cell when it is read
        (["1,2", "1", "2", "3", "3,1"] * 12, "multi-label", ","),
        (["a|b", "a", "b"] * 20, "multi-label", "|"),
        (["a, c", "a", "b", "c", "b,a"] * 12, "multi-label", ","),
        (["food, hot", "food, cold", "drink"] * 20, "classification", None),
    ],
)
def test_the_task_follows_from_the_labels(
    tmp_path: Path, labels: list[object], task: str, separator: str | None
) -> None:
    one = table(tmp_path, text=TEXTS, label=labels)
    cells = one.take("label", np.arange(N, dtype=np.int64))
    choice, found = infer_task(column_facts(one, "label"), cells, None, None)
    assert (choice.value, found) == (task, separator)
    numbers = task == "classification" and all(isinstance(label, int) for label in labels)
    assert ("task=regression" in choice.reason) == numbers


def test_lists_are_several_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": t, "tags": ["a", "b"][: i % 3]} for i, t in enumerate(TEXTS)]))
    one = read_table(path)
    columns, _ = choose_columns(one, None, None)
    assert columns.label == "tags"
    choice, _ = infer_task(column_facts(one, "tags"), [], None, None)
    assert choice.value == "multi-label"
    choice, _ = infer_task(column_facts(one, "tags"), [], False, None)
    assert choice.value == "classification"
