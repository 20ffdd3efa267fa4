"""How good answers out of a context are: exact match and F1, as SQuAD 2's own script computes them.

Rajpurkar et al. 2018: texts are compared in lower case, without punctuation, without the articles a, an, the, and with
single blanks; F1 is over the bags of their words; of several gold answers the best one counts. A question without an
answer has the one gold answer "". Intervals resample paragraphs with all of their questions, since questions about one
paragraph are right or wrong together. This module must not know what a model or a token is.

Letters: N questions, G groups (paragraphs), S resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.errors import DataError
from veneer.evaluation.bootstrap import Interval, accuracy_interval, percentile, resampled_sums
from veneer.evaluation.scores import Score, Scores

__all__ = [
    "AnswerMetrics",
    "AnswerShare",
    "answer_metrics",
    "best_threshold",
    "exact_match",
    "f1",
    "normalised",
    "question_scores",
]

Floats = NDArray[np.float64]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(text: str) -> str:
    """The text as it is compared.

    >>> normalised("The  Panthers' defense.")
    'panthers defense'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, gold: Sequence[str]) -> float:
    """1.0 where the answer is one of the gold ones, else 0.0. `gold` is empty where there is no answer."""
    mine = normalised(given)
    return float(any(mine == normalised(one) for one in _compared(gold)))


def f1(given: str, gold: Sequence[str]) -> float:
    """The best F1 over the gold answers, in [0, 1]. `gold` is empty where there is no answer.

    >>> f1("the Panthers defense", ["Panthers", "a defense of theirs"])
    0.6666666666666666
    """
    mine = normalised(given).split()
    return max(_overlap(mine, normalised(one).split()) for one in _compared(gold))


def _compared(gold: Sequence[str]) -> Sequence[str]:
    """Gold answers of which something is left; "" where there is none."""
    return [one for one in gold if normalised(one)] or [""]


def _overlap(mine: list[str], theirs: list[str]) -> float:
    if not mine or not theirs:
        return float(mine == theirs)
    same = sum((Counter(mine) & Counter(theirs)).values())
    return 2.0 * same / (len(mine) + len(theirs))  # = 2PR / (P + R)


def question_scores(given: Sequence[str], gold: Sequence[Sequence[str]]) -> Floats:
    """(N, 2): exact match and F1 of each question.

    Raises `DataError` where the numbers of answers and questions differ.
    """
    if len(given) != len(gold):
        raise DataError(
            f"{len(given)} answers were given for {len(gold)} questions; one for each was expected."
        )
    pairs = zip(given, gold, strict=True)
    found = [(exact_match(mine, theirs), f1(mine, theirs)) for mine, theirs in pairs]
    return np.array(found, np.float64).reshape(-1, 2)


@dataclass(frozen=True)
class AnswerShare:
    """The metrics of some of the questions; fractions in [0, 1]."""

    n: int
    exact_match: float
    f1: float


@dataclass(frozen=True)
class AnswerMetrics:
    """The metrics of N questions about G paragraphs; fractions in [0, 1].

    answerable, unanswerable   of the questions with, and without, an answer in their context; None where there are none
    given_none                 how many questions got no answer
    intervals                  by the names of the scores
    """

    n: int
    exact_match: float
    f1: float
    intervals: dict[str, Interval]
    paragraphs: int
    answerable: AnswerShare | None
    unanswerable: AnswerShare | None
    given_none: int

    def summary(self) -> Scores:
        """The numbers that a person reads first; F1 decides."""
        scores = [
            Score("f1", "F1", self.f1, self.intervals["f1"]),
            Score("exact_match", "Exact match", self.exact_match, self.intervals["exact_match"]),
        ]
        if self.answerable is not None and self.unanswerable is not None:
            scores += [
                Score("answerable_f1", "F1 where there is an answer", self.answerable.f1),
                Score("answerable_exact_match", "Exact match there", self.answerable.exact_match),
                Score("unanswerable_accuracy", "Right where there is none", self.unanswerable.exact_match),
            ]
        return Scores(self.n, tuple(scores), unit="questions")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        parts = {
            name: None if part is None else vars(part)
            for name, part in (("answerable", self.answerable), ("unanswerable", self.unanswerable))
        }
        return (
            self.summary().to_json()
            | {"paragraphs": self.paragraphs, "given_none": self.given_none, "unit": "questions"}
            | parts
        )


def answer_metrics(
    given: Sequence[str],
    gold: Sequence[Sequence[str]],
    *,
    groups: NDArray[np.int64] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> AnswerMetrics:
    """Compare answers with gold answers.

    Args:
        given: N answers, "" for none.
        gold: N lists of gold answers, empty where the context holds none.
        groups: (N,) int64, the paragraph of each question, from 0; None: each question is one of its own.
        bootstrap: resamples S for the intervals.
        seed: of the resamples.
        confidence: of the intervals.

    Raises `DataError` where there is no question, or not an answer for each.
    """
    if not len(gold):
        raise DataError("There is no question to measure on; at least one was expected.")
    scores = question_scores(given, gold)
    has = np.array([len(_compared(one)) > 0 and _compared(one) != [""] for one in gold])
    of = np.arange(len(gold)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    return AnswerMetrics(
        n=len(gold),
        exact_match=float(scores[:, 0].mean()),
        f1=float(scores[:, 1].mean()),
        intervals=_intervals(scores, of, bootstrap, seed, confidence),
        paragraphs=int(of.max()) + 1,
        answerable=_share(scores[has]),
        unanswerable=_share(scores[~has]),
        given_none=sum(not one for one in given),
    )


def _share(scores: Floats) -> AnswerShare | None:
    if not len(scores):
        return None
    return AnswerShare(len(scores), float(scores[:, 0].mean()), float(scores[:, 1].mean()))


def _intervals(
    scores: Floats, of: NDArray[np.int64], bootstrap: int, seed: int, confidence: float
) -> dict[str, Interval]:
    """Percentile intervals of the two means, over draws of whole groups."""
    from scipy.sparse import csr_array

    size = int(of.max()) + 1
    sums = np.stack([np.bincount(of, minlength=size)] + [np.bincount(of, column) for column in scores.T], 1)
    drawn = resampled_sums(np.ones(size, np.int64), csr_array(sums), resamples=bootstrap, seed=seed)  # (S, 3)
    found = {}
    for place, name in ((1, "exact_match"), (2, "f1")):
        values, mean = drawn[:, place] / drawn[:, 0], float(scores[:, place - 1].mean())
        if mean in (0.0, 1.0):  # no draw differs; the exact bound, with paragraphs as the independent trials
            found[name] = accuracy_interval(int(mean) * size, size, values, confidence)
        else:
            found[name] = percentile(values, confidence)
    return found


def best_threshold(margins: Floats, answered: Floats, unanswered: Floats) -> float:
    """From which margin on "no answer" is given, so that the mean score is as high as it can be.

    Args:
        margins: (N,) the score of "no answer" less that of the best span.
        answered: (N,) the score of a question if the best span is given.
        unanswered: (N,) if none is given.

    "No answer" is given where the margin is greater than the threshold. It is 0 where nothing is better than that; else
    the best one nearest to 0, halfway between two margins, so that it does not hang on a question's exact margin.
    """
    order = np.argsort(margins, kind="stable")
    ranked = margins[order]
    below = np.concatenate([[0.0], np.cumsum(answered[order])])
    above = np.concatenate([np.cumsum(unanswered[order][::-1])[::-1], [0.0]])
    total = below + above  # (N + 1,): the first i questions are answered
    edges = np.concatenate([[ranked[0] - 1.0], (ranked[1:] + ranked[:-1]) / 2.0, [ranked[-1] + 1.0]])
    possible = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    best = possible & (total >= total[possible].max() - 1e-9)
    if np.where(margins > 0, unanswered, answered).sum() >= total[best][0] - 1e-9:
        return 0.0
    return float(edges[best][np.abs(edges[best]).argmin()])
