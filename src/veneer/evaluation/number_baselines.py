"""What a simpler way reaches where the answer is a number: the mean, words with ridge regression, and the untuned base.

Each is fitted on the training rows only, in bounded time, and gives the same answer each time. This module knows texts
and arrays, no model and no trainer.

Letters: N rows, D features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.baselines import MAX_ROWS, Baseline
from veneer.evaluation.regression import explained_difference, regression_metrics
from veneer.evaluation.scores import Scores
from veneer.evaluation.words import word_counts

__all__ = ["mean_baseline", "probe_ridge", "tfidf_ridge"]

Floats = NDArray[np.float64]
_STRENGTHS = tuple(10.0**power for power in range(-2, 5))
"""Of the penalty; one is chosen by held-out training rows."""


def mean_baseline(known: Floats, targets: Floats, ours: Floats, *, seed: int = 0) -> Baseline:
    """Always the mean of the training numbers.

    Args:
        known: (N,) training numbers.
        targets, ours: (M,) the held-out rows' numbers, and the adapter's answers for them.
        seed: of the bootstrap.
    """
    start = time.perf_counter()
    said = np.full(len(targets), known.mean())
    return _baseline("always saying the mean", said, targets, ours, start, seed)


def tfidf_ridge(
    texts: Sequence[str],
    known: Floats,
    held_out: Sequence[str],
    targets: Floats,
    ours: Floats,
    *,
    seed: int = 0,
) -> Baseline:
    """Words and pairs of words, weighted, with ridge regression."""
    from sklearn.linear_model import Ridge  # noqa: F401 (loaded before the clock starts)

    start = time.perf_counter()
    rows, note = _sample(len(known), seed)
    chosen = [texts[row] for row in rows]
    vectorizer, characters = word_counts(chosen)
    name = f"TF-IDF ({'characters' if characters else 'words'}) with ridge regression"
    try:
        features = vectorizer.fit_transform(chosen)
    except ValueError:  # no word at all, or none that occurs twice
        said = np.full(len(targets), known.mean())
        return _baseline(
            name, said, targets, ours, start, seed, "no words to learn from: the same as the mean"
        )
    said = _ridge(features, known[rows], vectorizer.transform(held_out), seed)
    return _baseline(name, said, targets, ours, start, seed, note)


def probe_ridge(
    features: NDArray[Any],
    known: Floats,
    held_out: NDArray[Any],
    targets: Floats,
    ours: Floats,
    *,
    seed: int = 0,
) -> Baseline:
    """Ridge regression on the frozen base's pooled features (N, D): what the base knows without any adapter."""
    start = time.perf_counter()
    rows, note = _sample(len(known), seed)
    taken = np.asarray(features, np.float64)[rows]
    mean, spread = taken.mean(axis=0), taken.std(axis=0)
    spread = np.maximum(spread, 1e-6 * spread.max()) if spread.max() > 0 else np.ones_like(spread)
    said = _ridge(
        (taken - mean) / spread, known[rows], (np.asarray(held_out, np.float64) - mean) / spread, seed
    )
    return _baseline("the untuned base with a linear head", said, targets, ours, start, seed, note)


def _ridge(features: Any, known: Floats, held_out: Any, seed: int) -> Floats:
    """Answers for `held_out`, with the penalty that is best on a fifth of the training rows."""
    from sklearn.linear_model import Ridge

    order = np.random.default_rng(seed).permutation(len(known))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    mean = known.mean()

    def answers(rows: NDArray[Any], strength: float, where: Any) -> Floats:
        model = Ridge(alpha=strength, solver="lsqr" if hasattr(features, "tocsr") else "auto")
        return np.asarray(model.fit(features[rows], known[rows] - mean).predict(where) + mean, np.float64)

    best = _STRENGTHS[2]
    if len(test) > 1:
        errors = [
            float(np.square(answers(train, s, features[test]) - known[test]).mean()) for s in _STRENGTHS
        ]
        best = _STRENGTHS[int(np.argmin(errors))]
    return answers(order, best, held_out)


def _sample(n: int, seed: int) -> tuple[NDArray[np.int64], str]:
    if n <= MAX_ROWS:
        return np.arange(n), ""
    drawn = np.sort(np.random.default_rng(seed).permutation(n)[:MAX_ROWS])
    return drawn, f"fitted on a sample of {MAX_ROWS:,} of {n:,} training rows"


def _baseline(
    name: str, said: Floats, targets: Floats, ours: Floats, start: float, seed: int, note: str = ""
) -> Baseline:
    seconds = time.perf_counter() - start
    summary = regression_metrics(targets, said, seed=seed).summary()
    scores = Scores(summary.n, tuple(s for s in summary.scores if s.key in ("r2", "pearson", "rmse")))
    return Baseline(
        name, scores, seconds, note, difference=explained_difference(targets, ours, said, seed=seed)
    )
