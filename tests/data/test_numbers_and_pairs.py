"""Numbers as labels, and two columns that are read together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_tables import phrase, write_csv

from veneer.data import DataConfig, prepare
from veneer.data.reading import read_inputs
from veneer.errors import DataError

N = 60
TEXTS = [phrase(i) for i in range(N)]
OTHERS = [phrase(i + 500) for i in range(N)]
NUMBERS = [f"{i / 7:.3f}" for i in range(N)]


def table(place: Path, **columns: list[str]) -> DataConfig:
    return DataConfig(source=str(write_csv(place / "x.csv", columns)))


def test_numbers_are_read_as_they_stand(tmp_path: Path) -> None:
    found = prepare(table(tmp_path, text=TEXTS, price=NUMBERS))
    assert found.form.number
    assert found.labels == ()
    whole = {text: float(number) for text, number in zip(TEXTS, NUMBERS, strict=True)}
    seen = 0
    for split in found.splits:
        assert split.labels.dtype == np.float64
        for text, number in zip(split.texts(), split.labels, strict=True):
            assert whole[text] == number
            seen += 1
        assert found.label_counts(split) == {}
    assert seen == N
    (task,) = [choice for choice in found.choices if choice.what == "task"]
    assert (task.value, task.reason) == ("regression", "'price' holds numbers that are not whole")


def test_a_split_has_small_and_large_numbers_alike(tmp_path: Path) -> None:
    found = prepare(table(tmp_path, text=TEXTS, price=NUMBERS))
    numbers = np.sort(np.array(NUMBERS, float))
    for split in (found.train, found.test):
        low, high = (split.labels < numbers[N // 2]).sum(), (split.labels >= numbers[N // 2]).sum()
        assert abs(int(low) - int(high)) <= 4


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("3,5", r"1 cell is no number \('3,5' in row 2.*decimal comma has to be written as a point"),
        ("four", r"1 cell is no number \('four' in row 2"),
        ("inf", r"'inf' in row 2"),
        ("1_000", r"'1_000' in row 2"),
        ("", r"1 row without a label in column 'price' \(row 2"),
    ],
)
def test_what_is_no_number_is_named(tmp_path: Path, cell: str, message: str) -> None:
    config = table(tmp_path, text=TEXTS, price=["1.5", cell, *NUMBERS[2:]])
    with pytest.raises(DataError, match=message):
        prepare(config.replace(label_column="price"), target="numbers")
    with pytest.raises(DataError, match=message):  # one bad cell does not make another column, or task, of it
        prepare(config)


def test_one_number_alone_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only the number 2\.5"):
        prepare(table(tmp_path, text=TEXTS, label=["2.5"] * N), target="numbers")


def test_whole_numbers_are_labels_or_numbers_as_one_asks(tmp_path: Path) -> None:
    config = table(tmp_path, text=TEXTS, stars=[str(i % 5) for i in range(N)])
    assert prepare(config).labels == ("0", "1", "2", "3", "4")
    found = prepare(config, target="numbers")
    assert set(found.train.labels) == {0.0, 1, 2, 3, 4}
    assert [c.reason for c in found.choices if c.what == "task"] == ["asked for"]
    halves = table(tmp_path, text=TEXTS, price=[f"{i % 3}.5" for i in range(N)])
    assert prepare(halves, target="labels").labels == ("0.5", "1.5", "2.5")


@pytest.mark.parametrize(
    "names",
    [("premise", "hypothesis"), ("sentence1", "sentence2"), ("Question", "Answer"), ("text_a", "text_b")],
)
def test_pairs_are_found_by_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    columns = {names[0]: TEXTS, names[1]: OTHERS, "label": ["ab"[i % 2] for i in range(N)]}
    found = prepare(table(tmp_path, **columns))
    assert (found.columns.text, found.columns.pair, found.columns.label) == (*names, "label")
    (choice,) = [choice for choice in found.choices if choice.what == "text columns"]
    assert choice.value == " and ".join(names)
    seconds = found.train.pairs()
    assert seconds is not None
    assert {TEXTS.index(a) for a in found.train.texts()} == {OTHERS.index(b) for b in seconds}
    alone = prepare(table(tmp_path, **columns).replace(text_column=names[0]))
    assert alone.columns.pair is None


def test_a_pair_without_a_second_text_is_left_out_and_counted(tmp_path: Path) -> None:
    columns = {"premise": TEXTS, "hypothesis": ["", *OTHERS[1:]], "label": ["ab"[i % 2] for i in range(N)]}
    found = prepare(table(tmp_path, **columns))
    assert sum(len(split) for split in found.splits) == N - 1
    assert "1 row with an empty text left out." in found.warnings


def test_equal_pairs_stay_together_and_equal_first_texts_need_not(tmp_path: Path) -> None:
    firsts = ["the same premise"] * N
    columns = {"premise": firsts, "hypothesis": OTHERS, "label": ["ab"[i % 2] for i in range(N)]}
    found = prepare(table(tmp_path, **columns))
    assert found.counts["repeated_texts"] == 0
    assert len(found.test) == 12


def test_inputs_of_a_file_by_name(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "x.csv", {"premise": TEXTS[:2], "hypothesis": OTHERS[:2], "other": ["a", "b"]}
    )
    names = ("text", "text_pair")
    found = [given for _, given in read_inputs(path, names)]
    assert found == [{"text": a, "text_pair": b} for a, b in zip(TEXTS[:2], OTHERS[:2], strict=True)]
    turned = read_inputs(path, names, {"text": "hypothesis", "text_pair": "premise"})
    assert next(turned)[1] == {"text": OTHERS[0], "text_pair": TEXTS[0]}
    known = read_inputs(path, names, {}, {"text": "hypothesis", "text_pair": "other"})
    assert known.read == {"text": "hypothesis", "text_pair": "other"}
    with pytest.raises(DataError, match=r"which column is the text_pair.*text_pair_column=NAME"):
        read_inputs(path, names, {"text": "premise"})
    with pytest.raises(DataError, match="question: this adapter reads text, text_pair"):
        read_inputs(path, names, {"question": "premise"})
