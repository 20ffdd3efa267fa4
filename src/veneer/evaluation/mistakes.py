"""The rows worth reading: where the model is confidently wrong, and where it may be the label that is wrong.

Likely mislabelled rows follow confident learning (Northcutt, Jiang and Chuang, 2021, section 3.1): a row is a
candidate where another label's probability reaches that label's own threshold, the mean probability it gets
on rows that carry it, while the given label's probability stays below its threshold. Only for rows the model
was not trained on. This module knows texts, labels and probabilities; not how they are shown.

Letters: N rows, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.inputs import checked_multilabel, checked_single

__all__ = ["Mistake", "likely_mislabelled", "worst_errors"]


@dataclass(frozen=True)
class Mistake:
    """A row where the model and the label disagree.

    `row` is the number the caller gave the row; `probability` is the model's for its own answer,
    `given_probability` its probability for the given label.
    """

    row: int
    text: str
    given: str
    predicted: str
    probability: float
    given_probability: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


def worst_errors(
    texts: Sequence[str],
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    k: int = 20,
    *,
    rows: Sequence[int] | None = None,
    threshold: float = 0.5,
) -> tuple[Mistake, ...]:
    """The `k` most confidently wrong answers, the surest first.

    targets: (N,) label indices, or (N, K) of 0 and 1 with probabilities above `threshold` as predictions,
    where each wrong label of a row counts on its own. rows: the number to show for each row, default its
    place from 0. Raises DataError where the arrays can't be right.
    """
    if np.asarray(targets).ndim == 1:
        given, chances = checked_single(targets, probabilities, labels)
        predicted = chances.argmax(axis=1)
        wrong = np.flatnonzero(predicted != given)
        wrong = wrong[np.argsort(-chances[wrong, predicted[wrong]], kind="stable")[:k]]
        return _single(texts, labels, rows, wrong, given, predicted, chances)
    given_flags, chances = checked_multilabel(targets, probabilities, labels)
    cells = np.argwhere((chances > threshold) != given_flags)
    surety = np.where(given_flags, 1 - chances, chances)[cells[:, 0], cells[:, 1]]
    return _several(texts, labels, rows, cells[np.argsort(-surety, kind="stable")[:k]], given_flags, chances)


def likely_mislabelled(
    texts: Sequence[str],
    targets: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    k: int = 20,
    *,
    rows: Sequence[int] | None = None,
) -> tuple[Mistake, ...]:
    """The `k` rows whose label the model doubts most, the most doubtful first; see the module's text for the
    rule.

    Arguments as for `worst_errors`. A model that is right about nearly everything finds few; a poor model
    finds rows that are merely hard: they are candidates to look at, not corrections.
    """
    if np.asarray(targets).ndim == 1:
        given, chances = checked_single(targets, probabilities, labels)
        doubted, other = _doubted(given, chances)
        doubt = chances[doubted, other[doubted]] - chances[doubted, given[doubted]]
        doubted = doubted[np.argsort(-doubt, kind="stable")[:k]]
        return _single(texts, labels, rows, doubted, given, other, chances)
    given_flags, chances = checked_multilabel(targets, probabilities, labels)
    cells, doubts = [], []
    for label in range(len(labels)):
        two_sided = np.stack([1 - chances[:, label], chances[:, label]], axis=1)  # (N, 2): no, yes
        flags = given_flags[:, label].astype(np.int64)
        doubted, other = _doubted(flags, two_sided)
        cells += [(row, label) for row in doubted]
        doubts += list(two_sided[doubted, other[doubted]] - two_sided[doubted, flags[doubted]])
    order = np.argsort(-np.array(doubts), kind="stable")[:k]
    return _several(
        texts, labels, rows, np.array(cells, dtype=np.int64).reshape(-1, 2)[order], given_flags, chances
    )


def _doubted(
    given: NDArray[np.int64], chances: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows whose label is doubtful, and for every row the label that it would rather have."""
    n, size = chances.shape
    counts = np.bincount(given, minlength=size)
    own = chances[np.arange(n), given]
    sums = np.bincount(given, weights=own, minlength=size)
    thresholds = np.divide(sums, counts, out=np.full(size, np.inf), where=counts > 0)
    reached = np.where(chances >= thresholds, chances, -1.0)
    reached[np.arange(n), given] = -1.0
    other = reached.argmax(axis=1)
    doubtful = (reached.max(axis=1) > own) & (own < thresholds[given])
    return np.flatnonzero(doubtful), other


def _single(
    texts: Sequence[str],
    labels: Sequence[str],
    rows: Sequence[int] | None,
    which: NDArray[np.int64],
    given: NDArray[np.int64],
    other: NDArray[np.int64],
    chances: NDArray[np.float64],
) -> tuple[Mistake, ...]:
    return tuple(
        Mistake(
            row=int(i) if rows is None else int(rows[i]),
            text=texts[i],
            given=labels[given[i]],
            predicted=labels[other[i]],
            probability=float(chances[i, other[i]]),
            given_probability=float(chances[i, given[i]]),
        )
        for i in which
    )


def _several(
    texts: Sequence[str],
    labels: Sequence[str],
    rows: Sequence[int] | None,
    cells: NDArray[np.int64],
    given: NDArray[np.bool_],
    chances: NDArray[np.float64],
) -> tuple[Mistake, ...]:
    found = []
    for i, label in cells:
        yes, no = labels[label], f"not {labels[label]}"
        chance = float(chances[i, label])
        row = int(i) if rows is None else int(rows[i])
        if given[i, label]:
            found.append(Mistake(row, texts[i], yes, no, 1 - chance, chance))
        else:
            found.append(Mistake(row, texts[i], no, yes, chance, 1 - chance))
    return tuple(found)
