"""Labels: a stable order, the user's own type back, and nothing unknown let through."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from veneer.data.labels import MISSING, LabelSet, count_labels, encode_labels, encode_multi_hot
from veneer.errors import DataError


def labels_of(cells: list[str | None], kind: str = "text") -> LabelSet:
    return count_labels([cells], kind, False, None).label_set("x.csv")


@pytest.mark.parametrize(
    ("cells", "names", "values"),
    [
        (["spam", "ham", " spam "], ("ham", "spam"), ["ham", "spam"]),
        (["10", "9", "-1"], ("-1", "9", "10"), [-1, 9, 10]),
        (["1.0", "2.0", "1"], ("1", "2"), [1, 2]),
        (["True", "False"], ("False", "True"), [False, True]),
        (["true", "TRUE", "false"], ("false", "true"), [False, True]),
        (["007", "7"], ("007", "7"), ["007", "7"]),
        (["1", "two"], ("1", "two"), ["1", "two"]),
        (["0.5", "1"], ("0.5", "1"), ["0.5", "1"]),
        (["b", "B", "a"], ("B", "a", "b"), ["B", "a", "b"]),
    ],
)
def test_order_and_type(cells: list[str | None], names: tuple[str, ...], values: list[object]) -> None:
    labels = labels_of(cells)
    assert labels.names == names
    assert [labels.value(i) for i in range(len(labels))] == values
    assert [type(labels.value(i)) for i in range(len(labels))] == [type(value) for value in values]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=20), st.randoms())
def test_every_order_of_the_rows_gives_the_same_ids(names: list[str], random: Random) -> None:
    shuffled = sorted(names)
    random.shuffle(shuffled)
    assume(len(count_labels([[*names]], "text", False, None).counts) >= 2)
    assume(not {n.strip().lower() for n in names} <= {"true", "false"})  # spelt as it was seen first
    one, two = labels_of([*names]), labels_of([*shuffled])
    assert one == two
    ids = encode_labels([names], one, "x").tolist()
    assert [one.names[i] for i in ids] == [one.names[one.id(name)] for name in names]
    assert LabelSet.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_one_label_only_is_an_error() -> None:
    with pytest.raises(DataError, match=r"x.csv holds only one label, 'a'; at least two"):
        labels_of(["a", "a", None])
    with pytest.raises(DataError, match=r"holds no labels at all"):
        labels_of([None, " "])


def test_missing_cells_are_marked_and_counted() -> None:
    counts = count_labels([["a", None], ["b", " ", "a"]], "text", False, None)
    assert dict(counts.counts) == {"a": 2, "b": 1}
    assert counts.missing == 2
    ids = encode_labels([["a", None], ["b", " ", "a"]], counts.label_set("x"), "x")
    np.testing.assert_array_equal(ids, [0, MISSING, 1, MISSING, 0])


def test_labels_that_are_not_known_are_named() -> None:
    with pytest.raises(
        DataError, match=r"test.csv holds 2 labels .*'c' \(2 rows\), 'd' \(1 row\).*Known labels: a, b"
    ):
        encode_labels([["a", "c", "c", "d"]], LabelSet(("a", "b")), "test.csv")
    with pytest.raises(DataError, match=r"no label 'spma'. Did you mean 'spam'"):
        LabelSet(("ham", "spam")).id("spma")


def test_suspicious_spellings_are_warned_of() -> None:
    counts = count_labels([["Spam", "spam", "spam", "ham", "nan"]], "text", False, None)
    assert counts.warnings() == [
        "The labels 'Spam' (1 row) and 'spam' (2 rows) differ only by case and are kept apart; are they the same?",
        "1 row with the label 'nan', kept as a label; is it a missing value?",
    ]


def test_several_labels_in_a_cell() -> None:
    cells: list[str | None] = ["a, b", "b", None, "a,,a"]
    labels = count_labels([cells], "text", True, ",").label_set("x")
    hot, missing = encode_multi_hot([cells], labels, "x", "text", ",")
    np.testing.assert_array_equal(hot, [[1, 1], [0, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(missing, [False, False, True, False])
    hot, missing = encode_multi_hot([['["a", "b"]', "[]"]], labels, "x", "list", None)
    np.testing.assert_array_equal(hot, [[1, 1], [0, 0]])
    assert not missing.any()
    with pytest.raises(DataError, match=r"'c' \(1 row\)"):
        encode_multi_hot([["a,c"]], labels, "x", "text", ",")
