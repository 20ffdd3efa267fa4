"""`prepare`: what is left out, kept together, warned of and refused; the same result for the same data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_tables import phrase, write_csv

from veneer.data import DataConfig, prepare
from veneer.data.prepare import Prepared
from veneer.errors import ConfigError, DataError

TEXTS = [phrase(i) for i in range(100)]
LABELS = ["abc"[i % 3] for i in range(100)]


def prepared(tmp_path: Path, texts: list[str], labels: list[str], **options: object) -> Prepared:
    path = write_csv(tmp_path / "x.csv", {"text": texts, "label": labels})
    return prepare(DataConfig.parse({"source": str(path), **options}))


def all_texts(one: Prepared) -> list[str]:
    return [text for split in one.splits for text in split.texts()]


def test_texts_and_labels_stay_together(tmp_path: Path) -> None:
    one = prepared(tmp_path, TEXTS, LABELS)
    assert sorted(all_texts(one)) == sorted(TEXTS)
    assert [len(split) for split in one.splits] == [70, 10, 20]
    label_of = dict(zip(TEXTS, LABELS, strict=True))
    for split in one.splits:
        assert [one.labels[i] for i in split.labels] == [label_of[text] for text in split.texts()]
        assert [TEXTS[row] for row in split.rows] == split.texts()
        assert [text for texts, _ in split.batches(7) for text in texts] == split.texts()
    assert one.train[3] == one.train.texts(3, 4)[0] == one.train[3:4][0]
    assert one.train.row(0) == {"text": one.train[0], "label": one.labels[one.train.labels[0]]}
    assert one.train.pairs() is None


def test_the_summary_is_json_and_complete(tmp_path: Path) -> None:
    summary = json.loads(json.dumps(prepared(tmp_path, TEXTS, LABELS).summary()))
    assert summary["sizes"] == {"train": 70, "validation": 10, "test": 20}
    assert sum(summary["label_counts"]["train"].values()) == 70
    assert [choice["what"] for choice in summary["choices"]] == [
        "delimiter", "header", "text column", "label column", "task", "split",
    ]  # fmt: skip
    assert all(choice["reason"] for choice in summary["choices"])


def test_the_content_hash_is_of_the_content(tmp_path: Path) -> None:
    first = prepared(tmp_path, TEXTS, LABELS).content_hash
    assert prepared(tmp_path, TEXTS, LABELS).content_hash == first
    assert prepared(tmp_path, TEXTS, LABELS, seed=1).content_hash != first
    assert prepared(tmp_path, [*TEXTS[:-1], TEXTS[-1] + " "], LABELS).content_hash != first
    assert prepared(tmp_path, TEXTS, [*LABELS[:-1], "b"]).content_hash != first


def test_empty_texts_and_missing_labels(tmp_path: Path) -> None:
    texts, labels = [*TEXTS, "", "  ", "no label"], [*LABELS, "a", "b", " "]
    with pytest.raises(
        DataError, match=r"1 row without a label in column 'label' \(row 103.*on_missing_label=drop"
    ):
        prepared(tmp_path, texts, labels)
    one = prepared(tmp_path, texts, labels, on_missing_label="drop")
    assert sorted(all_texts(one)) == sorted(TEXTS)
    assert (one.counts["empty_texts"], one.counts["missing_labels"], one.counts["rows"]) == (2, 1, 103)
    assert "2 rows with an empty text left out." in one.warnings
    assert "1 row with no label left out." in one.warnings
    with pytest.raises(DataError, match=r"2 rows without a text in column 'text' \(row 101, 102"):
        prepared(tmp_path, texts, labels, on_empty_text="error")


def test_repeats_stay_on_one_side_and_contradictions_are_said(tmp_path: Path) -> None:
    texts, labels = (
        [*TEXTS, *TEXTS[:30], TEXTS[50]],
        [*LABELS, *LABELS[:30], "a" if LABELS[50] != "a" else "b"],
    )
    one = prepared(tmp_path, texts, labels)
    sides = [set(split.texts()) for split in one.splits]
    assert sum(map(len, sides)) == 100
    assert (one.counts["repeated_texts"], one.counts["contradictory_texts"]) == (31, 1)
    assert any("1 text with different labels" in w and TEXTS[50][:20] in w for w in one.warnings)
    assert any(c.what == "duplicates" and "31 rows" in c.value for c in one.choices)
    apart = prepared(tmp_path, texts, labels, duplicates="ignore")
    assert sum(len(set(split.texts())) for split in apart.splits) > 100


def test_a_label_seen_once_trains_with_a_warning(tmp_path: Path) -> None:
    one = prepared(tmp_path, [*TEXTS, "the odd one out"], [*LABELS, "z"])
    assert "the odd one out" in one.train.texts()
    assert any("The label 'z' is seen once" in warning for warning in one.warnings)
    many = prepared(tmp_path, [*TEXTS, *(f"odd one {i}" for i in range(7))], [*LABELS, *"qrstuvw"])
    (said,) = [warning for warning in many.warnings if "seen once" in warning]
    assert said.startswith("7 labels are each seen once ('q', 'r', 's', 't', 'u', ...); they can only be")


@pytest.mark.parametrize(
    ("texts", "labels", "options", "message"),
    [
        (TEXTS, ["a"] * 100, {}, r"only one label, 'a'"),
        (TEXTS, ["2.5"] * 99 + [""], {"on_missing_label": "drop"}, r"only the number 2.5|only one label"),
        (
            TEXTS[:4],
            ["a", "b", "a", "b"],
            {},
            r"4 usable rows \(4 different texts\) are too few to split off a validation part",
        ),
        (TEXTS, LABELS, {"label_column": "lable"}, r"no column 'lable'"),
        (
            [*[""] * 99, "x y z"],
            LABELS,
            {},
            r"fewer than two labels are left in the 1 usable row|no column looks",
        ),
    ],
)
def test_what_cannot_be_learnt_from(
    tmp_path: Path, texts: list[str], labels: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, texts, labels, **options)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"add up to 1.1"):
        DataConfig.parse({"source": "x.csv", "validation_fraction": 0.5, "test_fraction": 0.6})
    with pytest.raises(ConfigError, match=r"unknown key 'text_colum'. Did you mean 'text_column'"):
        DataConfig.parse({"source": "x.csv", "text_colum": "a"})
    with pytest.raises(ConfigError, match=r"name one column twice: a, a"):
        DataConfig.parse({"source": "x.csv", "text_column": "a", "label_column": "a"})


def test_parts_may_be_left_out(tmp_path: Path) -> None:
    one = prepared(tmp_path, TEXTS, LABELS, validation_fraction=0, test_fraction=0)
    assert [len(split) for split in one.splits] == [100, 0, 0]
    assert one.test.texts() == []


def test_files_of_the_users_own(tmp_path: Path) -> None:
    test = write_csv(
        tmp_path / "test.csv", {"sentence": [*TEXTS[:5], "brand new text"], "class": [*LABELS[:5], "a"]}
    )
    validation = write_csv(
        tmp_path / "val.csv", {"text": [TEXTS[0], TEXTS[7]], "label": [LABELS[0], LABELS[7]]}
    )
    one = prepared(tmp_path, TEXTS, LABELS, test=str(test))
    assert one.test.texts() == [*TEXTS[:5], "brand new text"]
    assert not set(TEXTS[:5]) & {*one.train.texts(), *one.validation.texts()}
    assert one.counts["overlap_train_test"] == 5
    assert "5 rows of train have a text that is in test as well; left out of train." in one.warnings
    assert len(one.train) + len(one.validation) == 95

    two = prepared(tmp_path, TEXTS, LABELS, test=str(test), validation=str(validation))
    assert two.validation.texts() == [TEXTS[7]]
    assert two.counts["overlap_validation_test"] == 1
    assert len(two.train) == 94
    three = prepared(tmp_path, TEXTS, LABELS, test=str(test), duplicates="ignore")
    assert len(three.train) + len(three.validation) == 100
    assert any("kept (duplicates=ignore)" in warning for warning in three.warnings)


def test_labels_that_training_never_saw(tmp_path: Path) -> None:
    test = write_csv(tmp_path / "test.csv", {"text": ["a b c", "d e f"], "label": ["a", "zz"]})
    with pytest.raises(
        DataError, match=r"test.csv holds 1 label that training does not know: 'zz' \(1 row\)"
    ):
        prepared(tmp_path, TEXTS, LABELS, test=str(test))
    test = write_csv(tmp_path / "test.csv", {"text": [TEXTS[0], "x y z"], "label": ["d", "a"]})
    with pytest.raises(DataError, match=r"No training text has the label 'd'"):
        prepared(tmp_path, TEXTS, ["d", *LABELS[1:]], test=str(test), label_column="label")


def test_fewer_rows_on_request(tmp_path: Path) -> None:
    one = prepared(tmp_path, TEXTS, LABELS, max_rows=40)
    assert sum(len(split) for split in one.splits) == 40
    assert any(c.what == "rows" and c.value == "40 of 100" for c in one.choices)
    assert set(all_texts(one)) < set(TEXTS)


def test_labels_that_no_row_is_left_of_are_dropped(tmp_path: Path) -> None:
    one = prepared(tmp_path, [*TEXTS, ""], [*LABELS, "A0"])
    assert one.labels == ("a", "b", "c")
    assert "Labels with no usable row, left out: A0." in one.warnings
    assert set(one.train.labels.tolist()) == {0, 1, 2}


def test_several_labels_per_text(tmp_path: Path) -> None:
    labels = ["red|blue", "red", "blue", "green|red"] * 25
    one = prepared(tmp_path, TEXTS, labels)
    assert one.multi_label
    assert one.labels == ("blue", "green", "red")
    assert one.train.labels.dtype == np.uint8
    for split in one.splits:
        for text, hot in zip(split.texts(), split.labels, strict=True):
            expected = set(labels[TEXTS.index(text)].split("|"))
            assert {one.labels[i] for i in np.flatnonzero(hot)} == expected
    assert one.label_counts(one.test) == {"blue": 10, "green": 5, "red": 15}


def test_integer_labels_and_pairs(tmp_path: Path) -> None:
    columns = {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": [i % 2 for i in range(100)]}
    path = write_csv(tmp_path / "x.csv", columns)
    one = prepare(DataConfig(source=str(path), text_column="premise", text_pair_column="hypothesis"))
    assert one.label_set.value(1) == 1
    pairs = one.test.pairs() or []
    assert [TEXTS[::-1][TEXTS.index(text)] for text in one.test.texts()] == pairs
    assert one.test.pairs(1, 2) == pairs[1:2]
