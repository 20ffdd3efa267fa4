"""The metrics against scikit-learn, the intervals against the binomial formula.

Tolerance 1e-12: both sides are float64 sums of the same numbers in another order.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics as oracle

from veneer.errors import DataError
from veneer.evaluation import classification_metrics, multilabel_metrics, paired_difference

TOLERANCE = 1e-12


def single_case(n: int, size: int, *, seed: int = 0, skill: float = 2.0):
    """Targets (n,) and probabilities (n, size) of a classifier that is right more often than not."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, size, n)
    logits = rng.normal(size=(n, size))
    logits[np.arange(n), targets] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return targets, probabilities, tuple(f"label {k}" for k in range(size))


def multi_case(n: int, size: int, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, size)) < 0.3).astype(np.int64)
    probabilities = np.clip(rng.normal(0.25 + 0.5 * targets, 0.25), 0, 1).round(2)  # rounded: ties
    return targets, probabilities, tuple(f"label {k}" for k in range(size))


@pytest.mark.parametrize(("n", "size"), [(300, 2), (200, 7), (40, 30), (1, 2)])
def test_single_label_equals_scikit_learn(n: int, size: int) -> None:
    targets, probabilities, labels = single_case(n, size)
    ours = classification_metrics(targets, probabilities, labels, bootstrap=20)
    predicted, every = probabilities.argmax(1), np.arange(size)
    assert_array_equal(ours.confusion, oracle.confusion_matrix(targets, predicted, labels=every))
    assert_allclose(ours.accuracy, oracle.accuracy_score(targets, predicted), atol=TOLERANCE)
    f1 = oracle.f1_score(targets, predicted, average="macro", zero_division=0)
    assert_allclose(ours.macro_f1, f1, atol=TOLERANCE)
    recalls = oracle.recall_score(
        targets, predicted, labels=np.unique(targets), average="macro", zero_division=0
    )
    assert_allclose(ours.balanced_accuracy, recalls, atol=TOLERANCE)
    p, r, f, s = oracle.precision_recall_fscore_support(targets, predicted, labels=every, zero_division=0)
    table = np.array([(x.precision, x.recall, x.f1, x.support) for x in ours.per_label])
    assert_allclose(table, np.stack([p, r, f, s], axis=1), atol=TOLERANCE)
    assert_allclose(ours.log_loss, oracle.log_loss(targets, probabilities, labels=every), atol=TOLERANCE)
    if size == 2:
        brier = oracle.brier_score_loss(targets, probabilities[:, 1], labels=every)
    else:
        brier = oracle.brier_score_loss(targets, probabilities, labels=every)
    assert_allclose(ours.brier, brier, atol=TOLERANCE)


def test_labels_absent_from_the_split_follow_the_documented_rule() -> None:
    targets = np.array([0, 0, 1, 1])
    probabilities = np.eye(5)[[0, 1, 1, 3]]  # label 3 only predicted, labels 2 and 4 nowhere
    ours = classification_metrics(targets, probabilities, tuple("abcde"), bootstrap=50)
    expected = oracle.f1_score(targets, [0, 1, 1, 3], average="macro", zero_division=0)
    assert_allclose(ours.macro_f1, expected, atol=TOLERANCE)
    assert_allclose(ours.balanced_accuracy, 0.5, atol=TOLERANCE)  # (1/2 + 1/2) / 2, of the labels that occur
    assert [x.support for x in ours.per_label] == [2, 2, 0, 0, 0]
    assert ours.per_label[4].f1 == 0.0


@pytest.mark.parametrize(("n", "size"), [(300, 6), (50, 20), (1, 3)])
def test_several_labels_equal_scikit_learn(n: int, size: int) -> None:
    targets, probabilities, labels = multi_case(n, size)
    ours = multilabel_metrics(targets, probabilities, labels, bootstrap=20)
    predicted = (probabilities > 0.5).astype(int)
    assert_allclose(ours.accuracy, oracle.accuracy_score(targets, predicted), atol=TOLERANCE)
    for average, value in (("micro", ours.micro_f1), ("macro", ours.macro_f1)):
        expected = oracle.f1_score(targets, predicted, average=average, zero_division=0)
        assert_allclose(value, expected, atol=TOLERANCE, err_msg=average)
    p, r, f, s = oracle.precision_recall_fscore_support(targets, predicted, zero_division=0)
    table = np.array([(x.precision, x.recall, x.f1, x.support) for x in ours.per_label])
    assert_allclose(table, np.stack([p, r, f, s], axis=1), atol=TOLERANCE)
    occurring = targets.any(0)
    expected = oracle.average_precision_score(
        targets[:, occurring], probabilities[:, occurring], average="macro"
    )
    assert_allclose(ours.mean_average_precision, expected, atol=TOLERANCE)
    flat = np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=1)
    assert_allclose(ours.log_loss, oracle.log_loss(targets.ravel(), flat, labels=[0, 1]), atol=TOLERANCE)
    assert_allclose(ours.brier, np.mean((probabilities - targets) ** 2), atol=TOLERANCE)


def test_several_labels_without_any_target_has_no_average_precision() -> None:
    ours = multilabel_metrics(np.zeros((3, 2), int), np.full((3, 2), 0.1), ("a", "b"), bootstrap=10)
    assert ours.mean_average_precision is None
    assert ours.accuracy == 1.0
    assert ours.macro_f1 == 0.0


def test_calibration_bins_against_a_plain_loop() -> None:
    targets, probabilities, labels = single_case(500, 3, seed=4)
    ours = classification_metrics(targets, probabilities, labels, bootstrap=10).calibration
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    error = 0.0
    for b, row in enumerate(ours.bins):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        assert row.count == inside.sum()
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert_allclose(ours.ece, error, atol=TOLERANCE)
    assert sum(row.count for row in ours.bins) == 500


def test_bootstrap_interval_agrees_with_the_binomial_formula() -> None:
    n = 1000
    targets = np.zeros(n, int)
    probabilities = np.eye(2)[(np.arange(n) % 5 == 0).astype(int)]  # 80 % right
    interval = classification_metrics(targets, probabilities, ("a", "b"), bootstrap=4000).intervals[
        "accuracy"
    ]
    half = 1.96 * np.sqrt(0.8 * 0.2 / n)
    # the quantile of 4,000 resamples has a standard error of about 0.0005, one row is 0.001
    assert_allclose([interval.low, interval.high], [0.8 - half, 0.8 + half], atol=0.0025)
    assert interval.method == "bootstrap"


def test_bootstrap_of_counts_has_the_law_of_resampled_rows() -> None:
    targets, probabilities, labels = single_case(120, 4, seed=2, skill=1.0)
    ours = classification_metrics(targets, probabilities, labels, bootstrap=4000).intervals["macro_f1"]
    rng, predicted = np.random.default_rng(9), probabilities.argmax(1)
    draws = [rng.integers(0, 120, 120) for _ in range(600)]
    plain = [oracle.f1_score(targets[d], predicted[d], average="macro", zero_division=0) for d in draws]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert_allclose(
        [ours.low, ours.high], [low, high], atol=0.02
    )  # standard error of a tail quantile of 600: ~0.006


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        right = rng.random(200) < 0.85
        ours = classification_metrics(
            np.zeros(200, int), np.eye(2)[(~right).astype(int)], ("a", "b"), seed=trial
        )
        covered += ours.intervals["accuracy"].low <= 0.85 <= ours.intervals["accuracy"].high
    assert 0.89 <= covered / 200 <= 0.99  # 95 % +- 4 standard errors of 1.5 %


def test_all_right_does_not_claim_certainty() -> None:
    targets = np.array([0, 1] * 50)
    ours = classification_metrics(targets, np.eye(2)[targets], ("a", "b"))
    assert ours.intervals["accuracy"].method == "binomial"
    assert_allclose(ours.intervals["accuracy"].low, 0.025 ** (1 / 100), atol=TOLERANCE)  # Clopper and Pearson
    assert ours.intervals["macro_f1"].method == "none"
    all_wrong = classification_metrics(targets, np.eye(2)[1 - targets], ("a", "b")).intervals["accuracy"]
    assert_allclose(all_wrong.high, 1 - 0.025 ** (1 / 100), atol=TOLERANCE)


def test_the_same_seed_gives_the_same_intervals() -> None:
    case = single_case(100, 3)
    assert classification_metrics(*case, seed=3).intervals == classification_metrics(*case, seed=3).intervals
    assert classification_metrics(*case, seed=3).intervals != classification_metrics(*case, seed=4).intervals


def test_paired_difference_is_narrower_than_two_single_intervals() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(500) < 0.9
    ours = theirs.copy()
    ours[np.flatnonzero(~theirs)[:20]] = True
    found = paired_difference(ours, theirs)
    assert_allclose(found.value, 20 / 500, atol=TOLERANCE)
    assert found.verdict == "better"
    assert (
        found.interval.high - found.interval.low < 0.04
    )  # 4 * sqrt(0.04 * 0.96 / 500) = 0.035; unpaired: 0.08
    assert paired_difference(theirs, ours).verdict == "worse"
    assert paired_difference(ours, ours).verdict == "level"


def test_json_is_plain_and_without_nan() -> None:
    for ours in (
        classification_metrics(*single_case(20, 3)),
        classification_metrics(*single_case(200, 101)),
        multilabel_metrics(*multi_case(20, 3)),
    ):
        data = json.loads(json.dumps(ours.to_json(), allow_nan=False))
        assert {"n", "accuracy", "macro_f1", "intervals", "per_label", "calibration"} <= set(data)
        assert set(data["intervals"]["accuracy"]) == {"low", "high", "confidence", "method"}
    assert classification_metrics(*single_case(200, 101)).to_json()["confusion"] is None
    assert classification_metrics(*single_case(200, 101)).to_json()["confusions"][0]["count"] >= 1


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(
        DataError, match=r"probabilities have shape \(2, 3\), expected \(rows, 2\).*targets have shape \(5,\)"
    ):
        classification_metrics(np.zeros(5, int), np.full((2, 3), 1 / 3), ("a", "b"))
    with pytest.raises(DataError, match="targets go from 0 to 7, expected 0 to 1"):
        classification_metrics(np.array([0, 7]), np.full((2, 2), 0.5), ("a", "b"))
    with pytest.raises(DataError, match="row 1 are not finite"):
        classification_metrics(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 1]]), ("a", "b"))
    with pytest.raises(DataError, match="logits"):
        classification_metrics(np.array([0]), np.array([[-3.0, 4.0]]), ("a", "b"))
    with pytest.raises(DataError, match=r"row 0 sum to 0\.8"):
        classification_metrics(np.array([0]), np.array([[0.4, 0.4]]), ("a", "b"))
    with pytest.raises(DataError, match="no row"):
        multilabel_metrics(np.zeros((0, 2), int), np.zeros((0, 2)), ("a", "b"))
    with pytest.raises(DataError, match="other values than 0 and 1"):
        multilabel_metrics(np.array([[0, 2]]), np.zeros((1, 2)), ("a", "b"))


def test_a_thousand_resamples_are_quick_and_a_large_split_stays_small() -> None:
    case = single_case(1000, 10)
    multi = multi_case(1000, 6)
    classification_metrics(*case, bootstrap=1)  # imports scipy
    start = time.perf_counter()
    classification_metrics(*case)
    multilabel_metrics(*multi)
    assert time.perf_counter() - start < 0.6  # measured: 0.01 s and 0.05 s; the margin is for a busy machine
    large = classification_metrics(*single_case(100_000, 20), bootstrap=200)
    assert large.n == 100_000
