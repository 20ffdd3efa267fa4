"""The split: every row once, equal texts together, shares exact, the same on every machine."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veneer.data.hashing import fingerprints, group_equal, mix
from veneer.data.split import Parts, contradictions, sample_rows, split_rows, strata_of_multi_hot


def split(
    texts: list[str], labels: list[int], seed: int = 0, validation: float = 0.1, test: float = 0.2
) -> Parts:
    groups = group_equal(fingerprints([texts]))
    strata = np.array(labels, np.int64)
    return split_rows(groups, strata, validation_fraction=validation, test_fraction=test, seed=seed)


FRACTIONS = st.tuples(st.sampled_from([0.0, 0.1, 0.25]), st.sampled_from([0.0, 0.2, 0.5]))


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=150), fractions=FRACTIONS, seed=st.integers(0, 99)
)
def test_different_texts_are_shared_out_within_one_row(
    labels: list[int], fractions: tuple[float, float], seed: int
) -> None:
    parts = split([f"text {i}" for i in range(len(labels))], labels, seed, *fractions)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
    for label, n in Counter(labels).items():
        mine = [
            sum(labels[row] == label for row in part.tolist())
            for part in (parts.train, parts.validation, parts.test)
        ]
        assert mine[0] >= 1
        for got, fraction in zip(mine[1:], fractions, strict=True):
            assert abs(got - n * fraction) <= 1
            assert not (n >= 3 and fraction > 0 and got == 0)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=120),
    fractions=FRACTIONS,
    seed=st.integers(0, 99),
)
def test_equal_texts_are_on_one_side(
    rows: list[tuple[int, int]], fractions: tuple[float, float], seed: int
) -> None:
    texts = [f"text {number}" for number, _ in rows]
    parts = split(texts, [label for _, label in rows], seed, *fractions)
    sides = [{texts[row] for row in part.tolist()} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == len(set(texts))
    assert sides[0]


EXPECTED_TEST = [1, 3, 4, 9, 10, 14, 28, 39]
EXPECTED_VALIDATION = [23, 24, 27, 38]


def test_the_split_is_the_same_everywhere_and_differs_by_seed() -> None:
    texts, labels = [f"text {i}" for i in range(40)], [i % 2 for i in range(40)]
    first = split(texts, labels, seed=7)
    # written down once; a change here breaks every stored run
    assert first.test.tolist() == EXPECTED_TEST
    assert first.validation.tolist() == EXPECTED_VALIDATION
    again = split(texts, labels, seed=7)
    np.testing.assert_array_equal(first.test, again.test)
    assert split(texts, labels, seed=8).test.tolist() != first.test.tolist()


def test_the_order_of_the_rows_does_not_matter() -> None:
    texts, labels = [f"text {i}" for i in range(60)], [i % 3 for i in range(60)]
    forward, backward = split(texts, labels), split(texts[::-1], labels[::-1])
    assert {texts[row] for row in forward.test} == {texts[::-1][row] for row in backward.test}


def test_a_label_seen_once_trains() -> None:
    for seed in range(10):
        parts = split([f"t{i}" for i in range(11)], [0] * 10 + [1], seed)
        assert 10 in parts.train


def test_many_copies_of_one_text_do_not_empty_a_part() -> None:
    texts = ["same"] * 50 + ["other"] * 50 + ["third"] * 50
    parts = split(texts, [0] * 150)
    assert all(len(part) == 50 for part in (parts.train, parts.validation, parts.test))


def test_groups_are_by_text_without_outer_space() -> None:
    groups = group_equal(fingerprints([["a", "b ", None], [" a\n", "b", "A", ""]]))
    assert len(groups.sizes) == 4
    assert groups.of_row[0] == groups.of_row[3]
    assert groups.of_row[1] == groups.of_row[4]
    assert groups.of_row[2] == groups.of_row[6]
    np.testing.assert_array_equal(groups.first[groups.of_row], [0, 1, 2, 0, 1, 5, 2])
    np.testing.assert_array_equal(groups.sizes[groups.of_row], [2, 2, 2, 2, 2, 1, 2])


def test_mix_is_splitmix64() -> None:
    # the first output of SplitMix64 with seed 0, from the reference implementation (Vigna, splitmix64.c)
    assert int(mix(np.zeros(1, np.uint64), 0)[0]) == 0xE220A8397B1DCDAF


def test_contradictions_are_found() -> None:
    groups = group_equal(fingerprints([["a", "b", "a", "c", "b", "a"]]))
    n, rows = contradictions(groups, np.array([0, 1, 0, 1, 0, 0]))
    assert n == 1
    np.testing.assert_array_equal(rows, [1, 4])


def test_a_sample_is_of_the_wanted_size_and_keeps_copies_together() -> None:
    texts = [f"t{i // 2}" for i in range(100)]
    rows = sample_rows(group_equal(fingerprints([texts])), 31, seed=1)
    assert len(np.unique(rows)) == 31
    assert sum(n == 1 for n in Counter(texts[row] for row in rows).values()) == 1
    assert sample_rows(group_equal(fingerprints([texts])), 31, seed=2).tolist() != rows.tolist()


def test_several_labels_are_stratified_by_combination_then_by_rarest() -> None:
    hot = np.array([[1, 1, 0]] * 4 + [[1, 0, 0]] * 6 + [[1, 0, 1]] + [[0, 1, 1]] + [[0, 0, 0]] * 2, np.uint8)
    strata = strata_of_multi_hot(hot)
    assert len(set(strata[:4].tolist())) == 1
    assert len(set(strata[4:10].tolist())) == 1
    assert strata[10] == strata[11]  # both rare, and their rarest label is the third
    assert len({strata[0], strata[4], strata[10], strata[12]}) == 4
    assert strata.max() == 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_strata(n: int) -> None:
    parts = split([f"t{i}" for i in range(n)], [0] * n, validation=0.25, test=0.25)
    assert len(parts.train) >= 1
    assert len(parts.train) + len(parts.validation) + len(parts.test) == n
