"""The baseline of answers: what it gives, and its distance to ours against plain resampling."""

from __future__ import annotations

import numpy as np
import pytest

from veneer.evaluation.answer_baseline import closest_sentences, paired_f1, sentence_baseline

CONTEXT = "The film is late. Dr. Ann, of 3.5 cats, won a prize! Bob lost it\nNobody was there"


def test_the_sentence_that_has_the_questions_rare_words() -> None:
    asked = ["Who won the prize?", "Who lost it?", "Was nobody there?", "zebra"]
    found = closest_sentences(asked, [CONTEXT] * 4)
    assert found == ["Ann, of 3.5 cats, won a prize!", "Bob lost it", "Nobody was there", "The film is late."]
    assert closest_sentences(["x"], [" ... "]) == [""]


def test_the_baseline_and_what_ours_are_ahead() -> None:
    gold = [["Ann"], ["Bob"], []]
    asked = ["Who won the prize?", "Who lost it?", "Was nobody there?"]
    found = sentence_baseline(asked, [CONTEXT] * 3, gold, ["Ann", "Bob", ""], groups=np.zeros(3, np.int64))
    f1 = found.scores.get("f1")
    assert f1 is not None
    assert f1.value == pytest.approx((2 / 7 + 2 / 4 + 0) / 3)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(1 - f1.value)
    assert found.to_json()["exact_match"] == 0


def test_the_interval_is_that_of_drawing_groups() -> None:
    draw = np.random.default_rng(0)
    ahead, groups = draw.normal(0.1, 0.3, 200), np.repeat(np.arange(40), 5)
    found = paired_f1(ahead, groups, bootstrap=4000)
    means = ahead.reshape(40, 5).mean(1)
    resampled = [means[draw.integers(0, 40, 40)].mean() for _ in range(4000)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.interval.low == pytest.approx(low, abs=0.01)
    assert found.interval.high == pytest.approx(high, abs=0.01)
