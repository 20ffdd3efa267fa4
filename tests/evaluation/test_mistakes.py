"""The rows worth reading: the surest errors first, and labels that were swapped on purpose found again."""

from __future__ import annotations

import numpy as np
from evaluation_cases import noisy
from numpy.testing import assert_allclose

from veneer.evaluation import likely_mislabelled, worst_errors


def test_worst_errors_are_the_surest_wrong_answers_in_order() -> None:
    targets, chances = noisy(200, 4, skill=1.5)
    texts = [f"text {i}" for i in range(200)]
    found = worst_errors(texts, targets, chances, "abcd", k=10, rows=range(1000, 1200))
    wrong = np.flatnonzero(chances.argmax(1) != targets)
    assert [m.probability for m in found] == sorted(chances.max(1)[wrong], reverse=True)[:10]
    for mistake in found:
        i = mistake.row - 1000
        assert mistake.text == f"text {i}"
        assert (mistake.given, mistake.predicted) == ("abcd"[targets[i]], "abcd"[chances[i].argmax()])
        assert_allclose(mistake.given_probability, chances[i, targets[i]])
    assert worst_errors(texts, chances.argmax(1), chances, "abcd") == ()


def test_swapped_labels_are_found_and_little_else() -> None:
    targets, chances = noisy(600, 3, skill=6.0)
    given = targets.copy()
    given[:20] = (given[:20] + 1) % 3
    found = likely_mislabelled([""] * 600, given, chances, "abc", k=40)
    rows = {mistake.row for mistake in found}
    assert len(rows & set(range(20))) >= 19
    assert len(rows - set(range(20))) <= 3
    doubts = [mistake.probability - mistake.given_probability for mistake in found]
    assert doubts == sorted(doubts, reverse=True)


def test_confident_learning_thresholds_by_hand() -> None:
    # thresholds: mean own probability of a: (0.9 + 0.8 + 0.1) / 3 = 0.6; of b: (0.9 + 0.5) / 2 = 0.7
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9], [0.5, 0.5]])
    found = likely_mislabelled(list("vwxyz"), np.array([0, 0, 0, 1, 1]), chances, "ab")
    assert [(m.row, m.given, m.predicted) for m in found] == [
        (2, "a", "b")
    ]  # row 4: 0.5 is below both thresholds


def test_several_labels_are_judged_one_by_one() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 3)) < 0.4).astype(int)
    chances = np.clip(0.1 + 0.8 * targets + rng.normal(0, 0.05, (200, 3)), 0, 1)
    chances[7, 1] = 0.02 + 0.96 * targets[7, 1]
    given = targets.copy()
    given[7, 1] = 1 - given[7, 1]
    wrong = worst_errors([f"t{i}" for i in range(200)], given, chances, ("x", "y", "z"))
    doubted = likely_mislabelled([f"t{i}" for i in range(200)], given, chances, ("x", "y", "z"))
    for found in (wrong, doubted):
        assert [m.row for m in found] == [7]
        assert {found[0].given, found[0].predicted} == {"y", "not y"}
        assert found[0].probability > 0.7
