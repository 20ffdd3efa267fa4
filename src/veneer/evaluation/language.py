"""How well a language model gives the answers it was taught: loss, perplexity, right tokens, right answers.

The loss is the mean over all labelled tokens, as transformers reports it. An answer is right where every token of it is
the likeliest one after the tokens before it; greedy generation gives exactly those answers, so this is exact match
without generating. Intervals resample examples, since the tokens of one example are right or wrong together.

This module must not know what a template or a model is.

Letters: N examples, T labelled tokens, S resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.errors import DataError
from veneer.evaluation.bootstrap import Interval, accuracy_interval, percentile
from veneer.evaluation.scores import Score, Scores

__all__ = ["LanguageMetrics", "language_metrics", "mean_loss"]

_HIGHEST = 700.0  # e to the power of more is no float


@dataclass(frozen=True)
class LanguageMetrics:
    """Of N examples with T labelled tokens.

    loss             mean over the tokens of -log p, in nats
    perplexity       e to the power of it
    token_accuracy   share of tokens that are the likeliest
    exact_match      share of examples all of whose tokens are; None where there are no answers to match
    intervals        by the names of the scores
    """

    n: int
    tokens: int
    loss: float
    perplexity: float
    token_accuracy: float
    exact_match: float | None
    intervals: dict[str, Interval]

    def summary(self) -> Scores:
        """The numbers that a person reads first; the loss decides."""
        got = self.intervals
        scores = [Score("loss", "Loss", self.loss, got["loss"], percent=False, higher_is_better=False)]
        if self.exact_match is not None:
            scores.append(Score("exact_match", "Exact match", self.exact_match, got["exact_match"]))
        scores += [
            Score("token_accuracy", "Right tokens", self.token_accuracy, got["token_accuracy"]),
            Score(
                "perplexity",
                "Perplexity",
                self.perplexity,
                got["perplexity"],
                percent=False,
                higher_is_better=False,
            ),
        ]
        return Scores(self.n, tuple(scores), unit="examples")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return self.summary().to_json() | {"tokens": self.tokens, "unit": "examples"}


def mean_loss(losses: NDArray[Any], examples: NDArray[np.int64]) -> tuple[float, float]:
    """The mean loss of T tokens and its standard error, examples taken as drawn: sums over tokens, a ratio of means.

    losses (T,); examples (T,) the example that each token belongs to. The error is that of a ratio estimator
    (Cochran 1977, section 6.3): sqrt(N / (N - 1) sum_i (s_i - loss * t_i)^2) / T.
    """
    sums, counts = _by_example(losses.astype(np.float64), examples)
    total = float(counts.sum())
    mean = float(sums.sum() / total)
    n = len(counts)
    if n < 2:
        return mean, 0.0
    return mean, float(math.sqrt(n / (n - 1) * np.square(sums - mean * counts).sum()) / total)


def language_metrics(
    losses: NDArray[Any],
    right: NDArray[Any],
    examples: NDArray[np.int64],
    *,
    answers: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> LanguageMetrics:
    """The metrics of T labelled tokens.

    Args:
        losses: (T,) of each token, in nats.
        right: (T,) bool, whether the likeliest token is it.
        examples: (T,) int64, the example that each token belongs to.
        answers: whether an example's tokens are an answer that can be matched.
        bootstrap, seed, confidence: of the intervals.

    Raises:
        DataError: there is no token, or a loss that is no number.
    """
    if not len(losses) or not len(losses) == len(right) == len(examples):
        raise DataError(
            f"{len(losses)} losses, {len(right)} answers and {len(examples)} examples were given to measure; expected "
            "as many of each, and at least one."
        )
    if not np.isfinite(losses).all():
        raise DataError("a loss is not a finite number, so nothing can be measured; the model has diverged.")
    sums, counts = _by_example(losses.astype(np.float64), examples)
    hits, _ = _by_example(right.astype(np.float64), examples)
    whole = hits == counts  # (N,)
    n, total = len(counts), int(counts.sum())
    loss = float(sums.sum() / total)
    found = np.stack([sums, counts, hits, whole.astype(np.float64)], axis=1)  # (N, 4)
    drawn = _resampled(found, bootstrap, seed)  # (S, 4)
    mean_losses = drawn[:, 0] / drawn[:, 1]
    between = percentile(mean_losses, confidence)
    intervals = {
        "loss": between,
        "perplexity": Interval(_exp(between.low), _exp(between.high), confidence),
        "token_accuracy": percentile(drawn[:, 2] / drawn[:, 1], confidence),
        "exact_match": accuracy_interval(int(whole.sum()), n, drawn[:, 3] / n, confidence),
    }
    if not answers:
        del intervals["exact_match"]
    return LanguageMetrics(
        n=n,
        tokens=total,
        loss=loss,
        perplexity=_exp(loss),
        token_accuracy=float(hits.sum() / total),
        exact_match=float(whole.mean()) if answers else None,
        intervals=intervals,
    )


def _by_example(
    values: NDArray[np.float64], examples: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(N,) sums, and numbers of tokens, of the examples that have any."""
    counts = np.bincount(examples)
    sums = np.bincount(examples, weights=values)
    there = counts > 0
    return sums[there], counts[there].astype(np.float64)


def _resampled(features: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(S, F) sums of the features (N, F) of N examples drawn with replacement."""
    rng = np.random.default_rng(seed)
    n = len(features)
    found = np.empty((resamples, features.shape[1]))
    for row in range(resamples):
        found[row] = np.bincount(rng.integers(0, n, n), minlength=n) @ features
    return found


def _exp(value: float) -> float:
    return math.exp(min(value, _HIGHEST))
