"""How good a classifier is: one label per text, or several.

Definitions are scikit-learn's with `zero_division=0`, and the tests hold them against it. What happens to a
label that a split does not hold:

- precision, recall and F1 of a label are 0 where their denominator is 0;
- balanced accuracy is the mean recall of the labels that occur among the targets;
- macro-F1 with one label per text is the mean over the labels that occur among the targets or the
  predictions;
- macro-F1 with several labels per text is the mean over all K labels (an absent, never predicted one counts
  as 0);
- mean average precision is the mean over the labels with at least one target, None where there is none.

In each bootstrap resample the same rules hold. This module must not know what a model or a text is.

Letters: N rows, K labels, P kinds of rows, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.bootstrap import Interval, accuracy_interval, percentile, resampled_sums
from veneer.evaluation.calibration import Calibration, calibration_of
from veneer.evaluation.inputs import checked_multilabel, checked_single
from veneer.evaluation.scores import Score, Scores

__all__ = [
    "ClassificationMetrics",
    "LabelScore",
    "MultilabelMetrics",
    "classification_metrics",
    "multilabel_metrics",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CONFUSION_IN_JSON = 100  # labels; a larger matrix is left out of JSON, its largest cells are always there


@dataclass(frozen=True)
class LabelScore:
    """Precision, recall and F1 of one label (fractions); its rows among targets and predictions."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """The metrics of N rows with one label each: fractions in [0, 1].

    `confusion` is (K, K) int64: a row for each given label, a column for each predicted one.

    `log_loss` is in nats. `brier` is the mean squared error over the labels of a row, summed, and halved for
    two labels (scikit-learn's default, so that a yes/no question has a score in [0, 1]).
    """

    n: int
    labels: tuple[str, ...]
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    intervals: dict[str, Interval]
    per_label: tuple[LabelScore, ...]
    confusion: Ints
    log_loss: float
    brier: float
    calibration: Calibration

    def summary(self) -> Scores:
        """The numbers that a person reads first; accuracy decides."""
        return Scores(
            self.n,
            (
                Score("accuracy", "Accuracy", self.accuracy, self.intervals["accuracy"]),
                Score("macro_f1", "Macro-F1", self.macro_f1, self.intervals["macro_f1"]),
                Score(
                    "balanced_accuracy",
                    "Balanced accuracy",
                    self.balanced_accuracy,
                    self.intervals["balanced_accuracy"],
                ),
                Score("log_loss", "Log loss", self.log_loss, percent=False, higher_is_better=False),
                Score("ece", "Calibration error", self.calibration.ece, higher_is_better=False),
                Score("brier", "Brier score", self.brier, percent=False, higher_is_better=False),
            ),
        )

    def top_confusions(self, k: int = 20) -> list[dict[str, Any]]:
        """The largest off-diagonal cells: given, predicted, count; the largest first."""
        cells = self.confusion.copy()
        np.fill_diagonal(cells, 0)
        order = np.argsort(-cells, axis=None, kind="stable")[:k]
        rows, columns = np.unravel_index(order, cells.shape)
        return [
            {"given": self.labels[i], "predicted": self.labels[j], "count": int(cells[i, j])}
            for i, j in zip(rows, columns, strict=True)
            if cells[i, j] > 0
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data. "confusion" is None beyond 100 labels; "confusions" lists the 20 largest mistakes."""
        return self.summary().to_json() | {
            "per_label": [vars(score) for score in self.per_label],
            "confusion": self.confusion.tolist() if len(self.labels) <= _CONFUSION_IN_JSON else None,
            "confusions": self.top_confusions(),
            "calibration": self.calibration.to_json(),
        }


@dataclass(frozen=True)
class MultilabelMetrics:
    """The metrics of N rows with any number of labels each.

    `accuracy` is subset accuracy: the share of rows with every label right.

    `mean_average_precision` is None where no label occurs. `log_loss` (nats) and `brier` are means over the N
    * K yes/no decisions; `calibration` compares the probability of yes with the share of yes.
    """

    n: int
    labels: tuple[str, ...]
    threshold: float
    accuracy: float
    micro_f1: float
    macro_f1: float
    mean_average_precision: float | None
    intervals: dict[str, Interval]
    per_label: tuple[LabelScore, ...]
    log_loss: float
    brier: float
    calibration: Calibration

    def summary(self) -> Scores:
        """The numbers that a person reads first; subset accuracy decides."""
        scores = [
            Score("accuracy", "Every label right", self.accuracy, self.intervals["accuracy"]),
            Score("macro_f1", "Macro-F1", self.macro_f1, self.intervals["macro_f1"]),
            Score("micro_f1", "Micro-F1", self.micro_f1, self.intervals["micro_f1"]),
        ]
        if self.mean_average_precision is not None:
            scores.append(
                Score("mean_average_precision", "Mean average precision", self.mean_average_precision)
            )
        scores += [
            Score("log_loss", "Log loss", self.log_loss, percent=False, higher_is_better=False),
            Score("ece", "Calibration error", self.calibration.ece, higher_is_better=False),
            Score("brier", "Brier score", self.brier, percent=False, higher_is_better=False),
        ]
        return Scores(self.n, tuple(scores))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `accuracy`, `macro_f1` and `intervals` as for one label per text."""
        return self.summary().to_json() | {
            "threshold": self.threshold,
            "mean_average_precision": self.mean_average_precision,
            "per_label": [vars(score) for score in self.per_label],
            "calibration": self.calibration.to_json(),
        }


def classification_metrics(
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> ClassificationMetrics:
    """Compare probabilities (N, K) with targets (N,), each the index of a label.

    The prediction is the label with the largest probability, the first of them in a tie.

    Raises DataError where the shapes, the targets or the probabilities can't be right (all faults at once).
    """
    given, chances = checked_single(targets, probabilities, labels)
    n, size = chances.shape
    predicted = chances.argmax(axis=1)
    confusion = np.bincount(given * size + predicted, minlength=size * size).reshape(size, size)
    right = np.diagonal(confusion)
    f1 = _f1(right, confusion.sum(1), confusion.sum(0))
    occurs = (confusion.sum(1) + confusion.sum(0)) > 0
    recall = _ratio(right, confusion.sum(1))
    one_hot_error = np.square(chances).sum(1) - 2 * chances[np.arange(n), given] + 1  # |p - e|^2
    return ClassificationMetrics(
        n=n,
        labels=tuple(labels),
        accuracy=int(right.sum()) / n,
        balanced_accuracy=float(recall[confusion.sum(1) > 0].mean()),
        macro_f1=float(f1[occurs].mean()),
        intervals=_single_intervals(confusion, bootstrap, seed, confidence),
        per_label=_per_label(labels, right, confusion.sum(1), confusion.sum(0)),
        confusion=confusion,
        log_loss=_log_loss(chances[np.arange(n), given]),
        brier=float(np.maximum(one_hot_error, 0).mean()) / (2 if size == 2 else 1),
        calibration=calibration_of(chances.max(axis=1), predicted == given),
    )


def multilabel_metrics(
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    threshold: float = 0.5,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> MultilabelMetrics:
    """Compare probabilities (N, K), each in [0, 1] on its own, with targets (N, K) of 0 and 1.

    A label is predicted where its probability is above the threshold. Raises DataError as
    classification_metrics does.
    """
    given, chances = checked_multilabel(targets, probabilities, labels)
    predicted = chances > threshold
    both = (given & predicted).sum(0)
    support, marked = given.sum(0), predicted.sum(0)
    average_precisions = [
        _average_precision(given[:, k], chances[:, k]) for k in range(len(labels)) if support[k] > 0
    ]
    return MultilabelMetrics(
        n=len(given),
        labels=tuple(labels),
        threshold=threshold,
        accuracy=float((given == predicted).all(axis=1).mean()),
        micro_f1=float(_f1(both.sum(), support.sum(), marked.sum())),
        macro_f1=float(_f1(both, support, marked).mean()),
        mean_average_precision=float(np.mean(average_precisions)) if average_precisions else None,
        intervals=_multilabel_intervals(given, predicted, bootstrap, seed, confidence),
        per_label=_per_label(labels, both, support, marked),
        log_loss=_log_loss(np.where(given, chances, 1.0 - chances)),
        brier=float(np.square(chances - given).mean()),
        calibration=calibration_of(chances.ravel(), given.ravel()),
    )


def _ratio(part: Any, whole: Any) -> Any:
    """part / whole, 0 where whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def _f1(both: Any, support: Any, predicted: Any) -> Any:
    return _ratio(2.0 * np.asarray(both), np.asarray(support) + np.asarray(predicted))


def _per_label(labels: Sequence[str], both: Ints, support: Ints, predicted: Ints) -> tuple[LabelScore, ...]:
    table = zip(
        labels,
        _ratio(both, predicted).tolist(),
        _ratio(both, support).tolist(),
        _f1(both, support, predicted).tolist(),
        support.tolist(),
        predicted.tolist(),
        strict=True,
    )
    return tuple(LabelScore(*row) for row in table)


def _log_loss(chance_of_truth: Floats) -> float:
    """Mean of -ln p, with p clipped to float64's epsilon as scikit-learn clips it."""
    eps = np.finfo(np.float64).eps
    return float(-np.log(np.clip(chance_of_truth, eps, 1 - eps)).mean())


def _average_precision(given: NDArray[np.bool_], chances: Floats) -> float:
    """The area under precision over recall, summed over distinct thresholds; given holds a True."""
    order = np.argsort(-chances, kind="stable")
    hits = np.cumsum(given[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(chances[order])), len(order) - 1)
    precision = hits[last_of_tie] / (last_of_tie + 1)
    recall = hits[last_of_tie] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _single_intervals(confusion: Ints, bootstrap: int, seed: int, confidence: float) -> dict[str, Interval]:
    from scipy.sparse import csr_array

    size = len(confusion)
    given, predicted = np.nonzero(confusion)  # (P,) the kinds of rows that occur
    kinds = np.arange(len(given))
    hits = given == predicted
    rows = np.concatenate([kinds, kinds, kinds[hits]])
    columns = np.concatenate([given, size + predicted, 2 * size + given[hits]])
    features = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(kinds), 3 * size))
    sums = resampled_sums(confusion[given, predicted], features, resamples=bootstrap, seed=seed)
    support, marked, both = sums[:, :size], sums[:, size : 2 * size], sums[:, 2 * size :]  # each (S, K)
    n, right = int(confusion.sum()), int(np.diagonal(confusion).sum())
    accuracy = accuracy_interval(right, n, both.sum(1) / n, confidence)
    if right == n:  # every resample is perfect as well: it says nothing
        perfect = Interval(1.0, 1.0, confidence, "none")
        return {"accuracy": accuracy, "balanced_accuracy": perfect, "macro_f1": perfect}
    balanced = _ratio(both, support).sum(1) / (support > 0).sum(1)
    macro = _f1(both, support, marked).sum(1) / (support + marked > 0).sum(1)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": percentile(balanced, confidence),
        "macro_f1": percentile(macro, confidence),
    }


def _multilabel_intervals(
    given: NDArray[np.bool_], predicted: NDArray[np.bool_], bootstrap: int, seed: int, confidence: float
) -> dict[str, Interval]:
    from scipy.sparse import csr_array

    n, size = given.shape
    kinds, counts = np.unique(np.hstack([given, predicted]), axis=0, return_counts=True)  # (P, 2K), (P,)
    support, marked = kinds[:, :size], kinds[:, size:]
    exact = (support == marked).all(axis=1, keepdims=True)
    features = csr_array(np.hstack([kinds, support & marked, exact]).astype(np.float64))  # (P, 3K + 1)
    sums = resampled_sums(counts, features, resamples=bootstrap, seed=seed)
    support_s, marked_s, both_s = sums[:, :size], sums[:, size : 2 * size], sums[:, 2 * size : 3 * size]
    right = int(counts[exact[:, 0]].sum())
    accuracy = accuracy_interval(right, n, sums[:, -1] / n, confidence)
    macro = _f1(both_s, support_s, marked_s).mean(1)
    micro = _f1(both_s.sum(1), support_s.sum(1), marked_s.sum(1))
    intervals = {"macro_f1": percentile(macro, confidence), "micro_f1": percentile(micro, confidence)}
    if right == n:
        intervals = {key: Interval(i.high, i.high, confidence, "none") for key, i in intervals.items()}
    return {"accuracy": accuracy} | intervals
