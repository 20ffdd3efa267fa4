"""What a simpler way reaches on the same rows: the numbers that keep an adapter honest.

Three of them: always the commonest label; words and pairs of words with logistic regression (TF-IDF, Salton
and Buckley 1988; sublinear counts as in Manning et al. 2008, section 6.4.1); logistic regression on the
features of the base as it came ("linear probe", Alain and Bengio 2016). Each is fitted on the training rows
only, in bounded time, and gives the same answer each time. This module knows texts and arrays, no model and
no trainer.

Letters: N rows, K labels, D features.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.bootstrap import Difference, Interval, paired_difference
from veneer.evaluation.metrics import ClassificationMetrics, classification_metrics, multilabel_metrics
from veneer.evaluation.scores import Scores
from veneer.evaluation.words import word_counts

__all__ = ["Baseline", "compared", "linear_probe", "majority_baseline", "rows_right", "tfidf_baseline"]

MAX_ROWS = 50_000  # training rows that a baseline is fitted on at most
_MAX_ROW_LABELS = 1_000_000  # training rows times labels: the cost of logistic regression grows with both
_MAX_STEPS = 200  # of the solver

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """One baseline on one split.

    `seconds` is the time to fit and predict; `note` says what was capped or did not converge; `difference` is
    adapter minus baseline on the same rows, once `compared` has filled it in; `right` (N,) says which rows
    the baseline has right (every label of the row).
    """

    name: str
    scores: Scores
    seconds: float
    note: str = ""
    difference: Difference | None = None
    right: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    @property
    def accuracy(self) -> float:
        """The accuracy, or the primary score where the task has no accuracy."""
        return (self.scores.get("accuracy") or self.scores.primary).value

    @property
    def macro_f1(self) -> float | None:
        """Macro-F1, None where the task has none."""
        score = self.scores.get("macro_f1")
        return None if score is None else score.value

    @property
    def interval(self) -> Interval | None:
        """The interval of the accuracy."""
        return (self.scores.get("accuracy") or self.scores.primary).interval

    def to_json(self) -> dict[str, Any]:
        """Plain data: name, the scores with their intervals, seconds, note, difference."""
        difference = None if self.difference is None else self.difference.to_json()
        extras = {"seconds": self.seconds, "note": self.note, "difference": difference}
        return {"name": self.name} | self.scores.to_json() | extras


@dataclass(frozen=True)
class _Fitted:
    """Probabilities for each split, and what has to be said about them."""

    probabilities: Mapping[str, Floats]
    note: str = ""


def rows_right(
    targets: NDArray[Any], probabilities: NDArray[Any], *, threshold: float = 0.5
) -> NDArray[np.bool_]:
    """(N,) bool: the rows that are right; with several labels per text (2-d targets), right in every label."""
    if targets.ndim == 1:
        return np.asarray(probabilities.argmax(axis=1) == targets)
    return np.asarray(((probabilities > threshold) == targets.astype(np.bool_)).all(axis=1))


def compared(baseline: Baseline, right: NDArray[np.bool_], *, seed: int = 0) -> Baseline:
    """The baseline with the difference to an adapter that has the rows `right` (N,) right, resampled in pairs."""
    if baseline.right is None:
        return baseline
    return replace(baseline, difference=paired_difference(right, baseline.right, seed=seed))


def majority_baseline(
    train_targets: NDArray[Any], tests: Mapping[str, NDArray[Any]], labels: Sequence[str]
) -> dict[str, Baseline]:
    """Always the commonest training label; with several labels per text, each label that most rows have.

    train_targets: (N,) label indices or (N, K) of 0 and 1; tests: split name -> targets of the same kind.
    Returns a baseline for each split. The probabilities are the shares of the labels in training.
    """
    start = time.perf_counter()
    shares = _shares(train_targets, len(labels))
    if train_targets.ndim == 1:
        name = f"always saying “{labels[int(shares.argmax())]}”"
    else:
        usual = [label for label, share in zip(labels, shares, strict=True) if share > 0.5]
        name = "always saying " + (" + ".join(f"“{label}”" for label in usual) or "no label")
    fitted = _Fitted({split: np.tile(shares, (len(targets), 1)) for split, targets in tests.items()})
    return _baselines(name, fitted, tests, labels, start)


def tfidf_baseline(
    train_texts: Sequence[str],
    train_targets: NDArray[Any],
    tests: Mapping[str, tuple[Sequence[str], NDArray[Any]]],
    labels: Sequence[str],
    *,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    characters: bool | None = None,
) -> dict[str, Baseline]:
    """Words and pairs of words, weighted, with logistic regression; fitted once, a baseline for each split.

    train_targets: (N,) label indices or (N, K) of 0 and 1; tests: split name -> (texts, targets). Above
    `max_rows` training rows (fewer with many labels) a stratified sample is used, and the note says so.
    characters: read runs of 1 to 3 characters instead of words; None infers it: yes for scripts written
    without spaces.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: F401 (loaded before the clock starts)

    start = time.perf_counter()
    rows, note = _sample(train_targets, len(labels), max_rows, seed)
    texts = [train_texts[i] for i in rows]
    vectorizer, characters = word_counts(texts, characters)
    name = f"TF-IDF ({'characters' if characters else 'words'}) with logistic regression"
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no word at all, or none that occurs twice
        shares = {split: _tiled(train_targets, labels, pair[1]) for split, pair in tests.items()}
        fitted = _Fitted(shares, "no words to learn from: the same as the commonest label")
    else:
        held_out = {split: vectorizer.transform(pair[0]) for split, pair in tests.items()}
        fitted = _logistic(features, train_targets[rows], held_out, labels, strength=10.0)
    return _baselines(name, fitted, {s: t[1] for s, t in tests.items()}, labels, start, note)


def linear_probe(
    train_features: NDArray[Any],
    train_targets: NDArray[Any],
    tests: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    labels: Sequence[str],
    *,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    name: str = "the untuned base with a linear head",
) -> dict[str, Baseline]:
    """Logistic regression on the frozen base's pooled features: what the base knows without any adapter.

    train_features: (N, D) float; tests: split name -> (features (M, D), targets). Features are standardised
    with the training rows' mean and spread. `seconds` does not hold the time to compute the features.
    """
    start = time.perf_counter()
    rows, note = _sample(train_targets, len(labels), max_rows, seed)
    known = np.asarray(train_features, dtype=np.float64)[rows]
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.maximum(spread, 1e-6 * spread.max()) if spread.max() > 0 else np.ones_like(spread)
    held_out = {s: (np.asarray(pair[0], dtype=np.float64) - mean) / spread for s, pair in tests.items()}
    fitted = _logistic((known - mean) / spread, train_targets[rows], held_out, labels, strength=0.1)
    return _baselines(name, fitted, {s: t[1] for s, t in tests.items()}, labels, start, note)


def _baselines(
    name: str,
    fitted: _Fitted,
    tests: Mapping[str, NDArray[Any]],
    labels: Sequence[str],
    start: float,
    note: str = "",
) -> dict[str, Baseline]:
    """A baseline for each split, from the probabilities; the seconds end here, before the intervals."""
    seconds = time.perf_counter() - start
    note = "; ".join(part for part in (note, fitted.note) if part)
    found = {}
    for split, targets in tests.items():
        chances = fitted.probabilities[split]
        several = targets.ndim == 2
        metrics: Any = (multilabel_metrics if several else classification_metrics)(targets, chances, labels)
        keep = (
            "accuracy",
            "macro_f1",
            "balanced_accuracy" if isinstance(metrics, ClassificationMetrics) else "micro_f1",
        )
        summary = metrics.summary()
        scores = Scores(summary.n, tuple(s for s in summary.scores if s.key in keep))
        found[split] = Baseline(name, scores, seconds, note, right=rows_right(targets, chances))
    return found


def _logistic(
    features: Any,
    targets: NDArray[Any],
    held_out: Mapping[str, Any],
    labels: Sequence[str],
    *,
    strength: float,
) -> _Fitted:
    """Logistic regression: one softmax for one label per text, one yes/no regression for each of several
    labels.

    A label without training rows gets probability 0, one that all or no rows have keeps its share.
    """
    if targets.ndim == 1:
        columns, note = _fit(features, targets, held_out, strength)
        full = {}
        for split, (classes, chances) in columns.items():
            full[split] = np.zeros((len(chances), len(labels)))
            full[split][:, classes] = chances
        return _Fitted(full, note)
    results = [_fit(features, targets[:, k], held_out, strength) for k in range(len(labels))]
    notes = [note for _, note in results if note]
    stacked = {
        split: np.stack([_yes(*columns[split]) for columns, _ in results], axis=1) for split in held_out
    }
    return _Fitted(stacked, f"{notes[0]} (for {len(notes)} of {len(labels)} labels)" if notes else "")


def _fit(
    features: Any, targets: NDArray[Any], held_out: Mapping[str, Any], strength: float
) -> tuple[dict[str, tuple[NDArray[Any], Floats]], str]:
    """For each split the classes that occur in training and their probabilities (M, classes); and a note."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(targets)
    if len(classes) == 1:
        return {split: (classes, np.ones((x.shape[0], 1))) for split, x in held_out.items()}, ""
    model = LogisticRegression(C=strength, max_iter=_MAX_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the note instead
        model.fit(features, targets)
    stopped = bool((model.n_iter_ >= _MAX_STEPS).any())
    note = f"the solver was stopped after {_MAX_STEPS} steps" if stopped else ""
    return {split: (classes, model.predict_proba(x)) for split, x in held_out.items()}, note


def _yes(classes: NDArray[Any], chances: Floats) -> Floats:
    """The column for 1, zeros where no training row had it."""
    where = np.flatnonzero(classes == 1)
    return chances[:, where[0]] if len(where) else np.zeros(len(chances))


def _shares(targets: NDArray[Any], size: int) -> Floats:
    """The share of training rows that have each label (K,)."""
    if targets.ndim == 2:
        return np.asarray(targets.mean(axis=0), dtype=np.float64)
    return np.bincount(targets, minlength=size) / len(targets)


def _tiled(train_targets: NDArray[Any], labels: Sequence[str], targets: NDArray[Any]) -> Floats:
    return np.tile(_shares(train_targets, len(labels)), (len(targets), 1))


def _sample(targets: NDArray[Any], size: int, max_rows: int, seed: int) -> tuple[NDArray[np.int64], str]:
    """The rows to fit on: all, or a seeded sample with each label's share kept (at least one row of each)."""
    n = len(targets)
    limit = min(max_rows, max(2_000, _MAX_ROW_LABELS // size))
    if n <= limit:
        return np.arange(n), ""
    order = np.random.default_rng(seed).permutation(n)
    if targets.ndim == 1:
        order = order[np.argsort(targets[order], kind="stable")]  # label by label, each in random order
        counts = np.bincount(targets, minlength=size)
        keep = np.maximum((counts * limit) // n, np.minimum(counts, 1))
        place = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # place within its label
        order = order[place < np.repeat(keep, counts)]
    else:
        order = order[:limit]
    return np.sort(order), f"fitted on a sample of {len(order):,} of {n:,} training rows"
