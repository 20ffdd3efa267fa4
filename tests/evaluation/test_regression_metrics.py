"""Figures of numbers against scikit-learn and SciPy. Tolerance 1e-9: sums in another order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from veneer.errors import DataError
from veneer.evaluation.number_baselines import mean_baseline, probe_ridge, tfidf_ridge
from veneer.evaluation.regression import explained_difference, regression_metrics

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False, width=32)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=30), st.sampled_from([0.0, 1e6]))
@settings(deadline=None, max_examples=25)
def test_figures_are_those_of_scikit_learn_and_scipy(pairs: list[tuple[float, float]], far: float) -> None:
    """Also far from 0, where sums of squares lose the digits that matter."""
    x, y = (np.array(column) + far for column in zip(*pairs, strict=True))
    assume(min(np.ptp(x), np.ptp(y)) > 0.1)
    found = regression_metrics(x, y, bootstrap=10)
    near = {"rtol": 1e-7, "atol": 1e-7}
    assert_allclose(found.r2, r2_score(x, y), **near)
    assert_allclose(found.rmse, root_mean_squared_error(x, y), **near)
    assert_allclose(found.mae, mean_absolute_error(x, y), **near)
    assert_allclose(found.pearson, pearsonr(x, y).statistic, **near)
    assert_allclose(found.spearman, spearmanr(x, y).statistic, **near)


def test_intervals_hold_the_value_and_shrink_with_rows() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for n in (50, 5_000):
        x = draw.normal(size=n)
        found = regression_metrics(x, x + 0.5 * draw.normal(size=n), seed=1)
        for key, value in (
            ("r2", found.r2),
            ("pearson", found.pearson),
            ("spearman", found.spearman),
            ("mae", found.mae),
        ):
            assert found.intervals[key].low < value < found.intervals[key].high, key
        widths.append(found.intervals["r2"].high - found.intervals["r2"].low)
    assert widths[1] < widths[0] / 5  # as the root of the rows: 10
    assert regression_metrics(x, x, seed=1).summary().primary.text == "100.0 %"


def test_the_interval_of_pearson_is_that_of_plain_resampling() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=80)
    y = x + draw.normal(size=80)
    rows = [np.random.default_rng(i).integers(0, 80, 80) for i in range(1000)]
    low, high = np.quantile([pearsonr(x[r], y[r]).statistic for r in rows], [0.025, 0.975])
    found = regression_metrics(x, y).intervals["pearson"]
    assert_allclose([found.low, found.high], [low, high], atol=0.02)  # two draws of 1,000


def test_what_is_not_defined_is_zero_and_never_nan() -> None:
    x = np.array([1.0, 2.0, 3.0])
    for y in (np.full(3, 7.3), np.full(3, 1e8)):
        found = regression_metrics(x, y)
        assert (found.pearson, found.spearman) == (0.0, 0.0)
        assert found.r2 < 0
        assert np.isfinite([i.low for i in found.intervals.values()]).all()
    assert regression_metrics(np.full(3, 7.3), x).r2 == 0.0


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="3 given numbers and 2 answers"):
        regression_metrics(np.arange(3), np.arange(2))
    with pytest.raises(DataError, match="1 of the answers are not finite"):
        regression_metrics(np.arange(2), np.array([1, np.nan]))


def test_the_difference_is_that_of_the_two_figures() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=200) + 1000
    ours, theirs = x + 0.3 * draw.normal(size=200), x + 0.9 * draw.normal(size=200)
    found = explained_difference(x, ours, theirs)
    assert_allclose(found.value, r2_score(x, ours) - r2_score(x, theirs), atol=1e-9)
    assert found.verdict == "better"
    assert explained_difference(x, theirs, ours).verdict == "worse"
    assert explained_difference(x, ours, ours).verdict == "level"


def test_baselines() -> None:
    draw = np.random.default_rng(0)
    words = ["good", "bad", "fine", "awful"]
    texts = [" ".join(draw.choice(words, 5)) for _ in range(300)]
    numbers = np.array([text.count("good") - text.count("awful") for text in texts], np.float64)
    known, held_out = (texts[:200], numbers[:200]), (texts[200:], numbers[200:])
    ours = numbers[200:]
    mean = mean_baseline(known[1], held_out[1], ours)
    assert_allclose(
        mean.scores.primary.value, r2_score(held_out[1], np.full(100, known[1].mean())), atol=1e-9
    )
    assert mean.difference is not None
    assert mean.difference.verdict == "better"
    ridge = tfidf_ridge(*known, *held_out, ours)
    assert ridge.scores.primary.value > 0.8
    features = draw.normal(size=(300, 4))
    given_numbers = features @ np.array([1.0, -2, 0, 3]) + 5
    probe = probe_ridge(features[:200], given_numbers[:200], features[200:], given_numbers[200:], ours)
    best = Ridge(alpha=0.01).fit(features[:200], given_numbers[:200]).predict(features[200:])
    assert_allclose(probe.scores.primary.value, r2_score(given_numbers[200:], best), atol=1e-3)
    empty = tfidf_ridge(["", " "], np.array([1.0, 3]), ["x"] * 100, held_out[1], ours)
    assert "no words" in empty.note
