"""How good found entities are: whole entities, of the right type, from the right first word to the right last one.

Definitions are those of seqeval in its default mode (and so of conlleval.pl), and the tests hold them against it:
precision, recall and F1 of each type; micro over all entities; macro over the types that occur among the given or the
found ones; 0 where a denominator is 0. Intervals resample whole sentences. This module knows entities as words of
numbered sentences, and no text.

Letters: N sentences, K types, P kinds of sentences, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.evaluation.blocks import Section, Table
from veneer.evaluation.bootstrap import Difference, Interval, percentile, resampled_sums
from veneer.evaluation.metrics import LabelScore
from veneer.evaluation.scores import Score, Scores

__all__ = ["EntityCounts", "EntityMetrics", "count_entities", "entity_metrics", "f1_difference", "micro_f1"]

Ints = NDArray[np.int64]
Entities = Sequence[Sequence[tuple[int, int, str]]]
"""The entities of each sentence: (first word, word after the last, type)."""


@dataclass(frozen=True)
class EntityCounts:
    """What F1 is made of, for each sentence.

    Attributes:
        types: K names.
        right, given, found: (N, K) int64: entities that are right, that are in the data, that were found.
    """

    types: tuple[str, ...]
    right: Ints
    given: Ints
    found: Ints

    @property
    def exact(self) -> NDArray[np.bool_]:
        """(N,) sentences with every entity right and none too many."""
        return np.asarray((self.right == self.given).all(axis=1) & (self.right == self.found).all(axis=1))


@dataclass(frozen=True, eq=False)
class EntityMetrics:
    """The metrics of N sentences, fractions in [0, 1].

    `exact` is the share of sentences with all entities right and none too many; `support` the entities in the data,
    `predicted` those found.
    """

    n: int
    precision: float
    recall: float
    f1: float
    macro_f1: float
    exact: float
    support: int
    predicted: int
    intervals: dict[str, Interval]
    per_type: tuple[LabelScore, ...]

    def summary(self) -> Scores:
        """The numbers that a person reads first; micro-F1 decides."""
        return Scores(
            self.n,
            (
                Score("f1", "Entity F1", self.f1, self.intervals["f1"]),
                Score("precision", "Precision", self.precision, self.intervals["precision"]),
                Score("recall", "Recall", self.recall, self.intervals["recall"]),
                Score("macro_f1", "Macro-F1", self.macro_f1, self.intervals["macro_f1"]),
                Score("exact", "Sentences all right", self.exact, self.intervals["exact"]),
            ),
            "sentences",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        counts = {"support": self.support, "predicted": self.predicted, "unit": "sentences"}
        return self.summary().to_json() | counts | {"per_type": [vars(score) for score in self.per_type]}

    def sections(self, split: str) -> tuple[Section, ...]:
        """The table of types."""
        rows = tuple(
            (
                score.label,
                *(f"{100 * share:.1f} %" for share in (score.precision, score.recall, score.f1)),
                f"{score.support:,}",
                f"{score.predicted:,}",
            )
            for score in sorted(self.per_type, key=lambda score: -score.support)
        )
        head = ("type", "precision", "recall", "F1", f"in {split}", "found")
        return (Section("Each type", (Table(head, rows, numeric=(1, 2, 3, 4, 5)),)),)


def count_entities(given: Entities, found: Entities, types: Sequence[str] = ()) -> EntityCounts:
    """Compare sentence by sentence.

    Args:
        given, found: N lists each.
        types: names that are to have a column even if nothing is of them; others that occur are added.
    """
    occurring = {kind for rows in (given, found) for row in rows for _, _, kind in row}
    names = tuple(sorted(occurring | set(types)))
    place = {kind: number for number, kind in enumerate(names)}
    counts = np.zeros((3, len(given), len(names)), np.int64)
    for n, (theirs, ours) in enumerate(zip(given, found, strict=True)):
        for which, row in enumerate((set(theirs) & set(ours), set(theirs), set(ours))):
            for _, _, kind in row:
                counts[which, n, place[kind]] += 1
    return EntityCounts(names, *counts)


def entity_metrics(
    counts: EntityCounts, *, bootstrap: int = 1000, seed: int = 0, confidence: float = 0.95
) -> EntityMetrics:
    """The metrics of N sentences, at least one."""
    right, given, found = (part.sum(axis=0) for part in (counts.right, counts.given, counts.found))
    precision, recall, f1 = _scores(right, given, found)
    occurs = (given + found) > 0
    micro = _scores(right.sum(), given.sum(), found.sum())
    table = zip(counts.types, precision, recall, f1, given, found, strict=True)
    return EntityMetrics(
        n=len(counts.given),
        precision=float(micro[0]),
        recall=float(micro[1]),
        f1=float(micro[2]),
        macro_f1=float(f1[occurs].mean()) if occurs.any() else 0.0,
        exact=float(counts.exact.mean()),
        support=int(given.sum()),
        predicted=int(found.sum()),
        intervals=_intervals(counts, bootstrap, seed, confidence),
        per_type=tuple(
            LabelScore(kind, float(p), float(r), float(f), int(s), int(n))
            for (kind, p, r, f, s, n), here in zip(table, occurs, strict=True)
            if here
        ),
    )


def micro_f1(counts: EntityCounts) -> tuple[float, float]:
    """F1 over all entities and its standard error: the delta method over sentences, without resampling.

    F1 is 2R / (G + F) of sums over sentences; the error is that of the ratio's linear part.
    """
    right, size = counts.right.sum(axis=1), (counts.given + counts.found).sum(axis=1)  # each (N,)
    total = int(size.sum())
    if total == 0:
        return 0.0, 0.0
    f1 = 2 * int(right.sum()) / total
    residual = 2 * right - f1 * size
    return f1, float(np.sqrt((residual**2).sum()) / total)


def f1_difference(
    ours: EntityCounts,
    theirs: EntityCounts,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Our micro-F1 minus theirs on the same sentences, resampled in pairs."""
    parts = [part.sum(axis=1) for c in (ours, theirs) for part in (c.right, c.given + c.found)]
    features = np.stack(parts, axis=1)  # (N, 4)
    sums = _resampled(features, bootstrap, seed)
    values = _ratio(2 * sums[:, 0], sums[:, 1]) - _ratio(2 * sums[:, 2], sums[:, 3])
    return Difference(micro_f1(ours)[0] - micro_f1(theirs)[0], percentile(values, confidence))


def _intervals(counts: EntityCounts, bootstrap: int, seed: int, confidence: float) -> dict[str, Interval]:
    size = len(counts.types)
    exact = counts.exact[:, None]
    sums = _resampled(np.hstack([counts.right, counts.given, counts.found, exact]), bootstrap, seed)
    right, given, found = (sums[:, k * size : (k + 1) * size] for k in range(3))  # each (S, K)
    precision, recall, f1 = _scores(right.sum(axis=1), given.sum(axis=1), found.sum(axis=1))
    occurs = (given + found > 0).sum(axis=1)
    macro = _ratio(_scores(right, given, found)[2].sum(axis=1), occurs)
    named = {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "macro_f1": macro,
        "exact": sums[:, -1] / len(exact),
    }
    return {key: percentile(values, confidence) for key, values in named.items()}


def _resampled(features: NDArray[Any], bootstrap: int, seed: int) -> NDArray[np.float64]:
    """(S, F) sums of the rows' features (N, F) in resamples of N rows."""
    from scipy.sparse import csr_array

    kinds, counts = np.unique(features, axis=0, return_counts=True)  # (P, F), (P,)
    return resampled_sums(counts, csr_array(kinds.astype(np.float64)), resamples=bootstrap, seed=seed)


def _scores(right: Any, given: Any, found: Any) -> tuple[Any, Any, Any]:
    """Precision, recall, F1."""
    return _ratio(right, found), _ratio(right, given), _ratio(2.0 * np.asarray(right), np.add(given, found))


def _ratio(part: Any, whole: Any) -> Any:
    """part / whole, 0 where whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
