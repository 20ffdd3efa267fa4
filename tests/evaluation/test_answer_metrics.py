"""Answers against torchmetrics' SQuAD metric, hand-checked values and a plain search. Tolerance 1e-6: torch sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import text as text_metrics

from veneer.errors import DataError
from veneer.evaluation.answers import (
    answer_metrics,
    best_threshold,
    exact_match,
    f1,
    normalised,
    question_scores,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Panthers' defense.", "panthers defense"),
        ("an A.B. the-thing", "ab thething"),
        ("theatre Anna a", "theatre anna"),
        ("\tÉcole\u00a0“the” x ", "école “ ” x"),
        ("...", ""),
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("mine", "gold", "exact", "overlap"),
    [
        ("the 308 points", ["308", "308 points"], 1.0, 1.0),
        ("308 points scored", ["308"], 0.0, 0.5),
        ("b b c", ["b c c"], 0.0, 2 / 3),
        ("", ["x"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("x", [], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("x", ["The"], 0.0, 0.0),
        ("x", ["The", "x y"], 0.0, 2 / 3),
    ],
)
def test_hand_checked(mine: str, gold: list[str], exact: float, overlap: float) -> None:
    assert exact_match(mine, gold) == exact
    assert f1(mine, gold) == pytest.approx(overlap)


WORDS = st.lists(
    st.sampled_from(["the", "A", "cat", "Cat.", "ran", "an", "é", "12"]), min_size=1, max_size=5
).map(" ".join)
CASES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6)


@given(CASES)
@settings(deadline=None, max_examples=40)
def test_as_torchmetrics_computes_squad(cases: list[tuple[str, list[str]]]) -> None:
    """torchmetrics follows SQuAD 1.1's script; it differs where nothing is left of a text but articles."""
    squad = text_metrics.squad
    cases = [
        (mine, kept) for mine, gold in cases if normalised(mine) and (kept := list(filter(normalised, gold)))
    ]
    if not cases:
        return
    found = squad(
        [{"prediction_text": mine, "id": str(i)} for i, (mine, _) in enumerate(cases)],
        [
            {"answers": {"text": gold, "answer_start": [0] * len(gold)}, "id": str(i)}
            for i, (_, gold) in enumerate(cases)
        ],
    )
    ours = answer_metrics([mine for mine, _ in cases], [gold for _, gold in cases], bootstrap=10)
    assert 100 * ours.exact_match == pytest.approx(float(found["exact_match"]), abs=1e-4)
    assert 100 * ours.f1 == pytest.approx(float(found["f1"]), abs=1e-4)


def test_the_parts_and_the_summary() -> None:
    found = answer_metrics(["a b", "", "x", ""], [["b"], ["c"], [], []], groups=np.array([5, 5, 7, 7]))
    assert (found.n, found.paragraphs, found.given_none) == (4, 2, 2)
    assert found.answerable is not None
    assert found.unanswerable is not None
    assert (found.answerable.n, found.answerable.exact_match) == (2, 0.5)
    assert (found.unanswerable.n, found.unanswerable.f1) == (2, 0.5)
    assert found.summary().primary.key == "f1"
    data = found.to_json()
    assert (data["f1"], data["exact_match"], data["unanswerable_accuracy"]) == (0.5, 0.5, 0.5)
    assert data["unanswerable"] == {"n": 2, "exact_match": 0.5, "f1": 0.5}
    assert answer_metrics(["x"], [["x"]]).summary().get("unanswerable_accuracy") is None


def test_questions_of_a_paragraph_are_resampled_together() -> None:
    """40 paragraphs of 25 questions that are all right or all wrong tell as much as 40 questions."""
    right = np.repeat(np.arange(40) % 2, 25)
    mine = ["x" if one else "y" for one in right]
    gold = [["x"]] * 1000
    groups = np.repeat(np.arange(40), 25)
    apart, together = answer_metrics(mine, gold), answer_metrics(mine, gold, groups=groups)
    few = answer_metrics(mine[::25], gold[::25])

    def width(one: object) -> float:
        interval = one.intervals["f1"]  # type: ignore[attr-defined]
        return float(interval.high - interval.low)

    assert width(apart) == pytest.approx(0.062, abs=0.01)
    assert width(together) == pytest.approx(width(few), rel=0.1)


def test_all_right_has_the_exact_bound() -> None:
    interval = answer_metrics(["x"] * 20, [["x"]] * 20, groups=np.arange(20) // 2).intervals["exact_match"]
    assert (interval.method, interval.high) == ("binomial", 1.0)
    assert interval.low == pytest.approx(0.025 ** (1 / 10))


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="2 answers were given for 1 questions"):
        question_scores(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="no question to measure"):
        answer_metrics([], [])


@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0])),
        min_size=1,
        max_size=12,
    )
)
def test_the_threshold_is_the_best(rows: list[tuple[int, float, float]]) -> None:
    margins, answered, unanswered = (np.array(column, np.float64) for column in zip(*rows, strict=True))

    def score(threshold: float) -> float:
        return float(np.where(margins > threshold, unanswered, answered).sum())

    found = best_threshold(margins, answered, unanswered)
    tried = [score(t) for t in np.arange(-6, 6, 0.25)]
    assert score(found) == pytest.approx(max(tried))
    assert (found == 0.0) == (score(0.0) == pytest.approx(max(tried)))
