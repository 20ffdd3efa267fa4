"""What answers without any learning reach: the sentence of the context that has most words in common with the question.

The simplest reading of "it must stand there where the question's words stand" (the overlap baselines of Richardson et
al. 2013, section 4, on whole sentences). This module knows texts; it must not know what a model is.

Letters: N questions, G groups (paragraphs), S resamples.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.answers import answer_metrics, normalised, question_scores
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.bootstrap import Difference, percentile, resampled_sums

__all__ = ["closest_sentences", "paired_f1", "sentence_baseline"]

_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+(?=\s|$)|[.!?。！？](?=\S)[^.!?。！？\n]*)*")


def closest_sentences(questions: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """For each question the sentence of its context whose words weigh most in it; the first of equal ones.

    A word weighs log(1 + sentences / sentences that have it), over all contexts (Spärck Jones 1972).
    """
    known = {
        context: [s for s in _sentences(context) if normalised(s)] for context in dict.fromkeys(contexts)
    }
    bags = {context: [set(normalised(s).split()) for s in found] for context, found in known.items()}
    counts = Counter(word for found in bags.values() for bag in found for word in bag)
    total = sum(map(len, bags.values()))
    chosen = []
    for question, context in zip(questions, contexts, strict=True):
        asked = set(normalised(question).split())
        weights = [sum(math.log1p(total / counts[w]) for w in sorted(asked & bag)) for bag in bags[context]]
        chosen.append(known[context][int(np.argmax(weights))] if weights else "")
    return chosen


def _sentences(text: str) -> list[str]:
    return [piece.strip() for piece in _SENTENCE.findall(text)]


def sentence_baseline(
    questions: Sequence[str],
    contexts: Sequence[str],
    gold: Sequence[Sequence[str]],
    ours: Sequence[str],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Baseline:
    """The baseline on N questions, and how far our answers are ahead of it in F1.

    Args:
        questions, contexts, gold: as `answer_metrics` takes them.
        ours: N answers of the adapter, "" for none.
        groups: (N,) the paragraph of each question.
        seed: of the resamples.
    """
    began = time.perf_counter()
    given = closest_sentences(questions, contexts)
    seconds = time.perf_counter() - began
    metrics = answer_metrics(given, gold, groups=groups, seed=seed)
    ahead = question_scores(ours, gold)[:, 1] - question_scores(given, gold)[:, 1]
    name = "the sentence with most words of the question"
    return Baseline(name, metrics.summary(), seconds, difference=paired_f1(ahead, groups, seed=seed))


def paired_f1(
    ahead: NDArray[np.float64], groups: NDArray[np.int64] | None, *, bootstrap: int = 1000, seed: int = 0
) -> Difference:
    """The mean of differences (N,) with its percentile interval over draws of whole groups."""
    from scipy.sparse import csr_array

    of = np.arange(len(ahead)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    sums = np.stack([np.bincount(of), np.bincount(of, ahead)], axis=1)  # (G, 2)
    drawn = resampled_sums(np.ones(len(sums), np.int64), csr_array(sums), resamples=bootstrap, seed=seed)
    return Difference(float(ahead.mean()), percentile(drawn[:, 1] / drawn[:, 0], 0.95))
