"""What is written about a classifier: its model card, its part of the report, and what simpler means reach.

This file knows classifiers, the plain facts of `veneer.evaluation` and the code that reads an adapter with PEFT alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.rows import Split
from veneer.evaluation.baselines import (
    Baseline,
    compared,
    linear_probe,
    majority_baseline,
    rows_right,
    tfidf_baseline,
)
from veneer.evaluation.mistakes import likely_mislabelled, worst_errors
from veneer.lora import disabled
from veneer.tasks.base import Encoded, Outputs, dense
from veneer.tasks.kind import Card, Findings, Told
from veneer.tasks.pooling import pool
from veneer.tasks.sequence_code import sequence_code
from veneer.tasks.texts import joined

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = ["baselines", "card", "features", "findings", "inspected"]

_PROBE_TEXTS = 4_000  # training texts whose features the untuned base is judged by


def card(adapted: Adapted) -> Card:
    """For the model card."""
    task: Any = adapted.task
    kind = "any of" if task.multi_label else "one of"
    what = "pair of texts" if task.pair else "text"
    answer = "print(labels, logits.sigmoid())" if task.multi_label else "print(labels, logits.softmax(-1))"
    pair = ' --pair "another"' if task.pair else ""
    return Card(
        summary=f"{kind} {len(task.labels)} labels for each {what}",
        pipeline_tag="text-classification",
        code=sequence_code(adapted, labels=list(task.labels), several=task.multi_label, answer=answer),
        labels=task.labels,
        limits=(cut_limit(adapted),),
        commands=(f'veneer predict ADAPTER "a text"{pair}', "veneer evaluate ADAPTER more.csv"),
    )


def cut_limit(adapted: Adapted) -> str:
    """What happens to a long text, in a sentence."""
    longest = adapted.max_length
    if len(adapted.task.inputs) > 1:
        return f"Two texts of more than {longest} tokens together are cut, the longer one first."
    return f"A text longer than {longest} tokens is cut; what stands after that is not read."


def findings(told: Told) -> Findings:
    """The most confident errors and the likely mislabelled rows."""
    task: Any = told.adapted.task
    split: Split = told.rows
    chances = task.probabilities(dense(told.outputs))
    given = (joined(split), np.asarray(split.labels), chances, task.labels)
    rows = [int(row) + 1 for row in split.rows]
    right = rows_right(given[1], chances, threshold=task.threshold)
    return Findings(
        mistakes=tuple(worst_errors(*given, rows=rows, threshold=task.threshold)),
        mislabelled=tuple(likely_mislabelled(*given, rows=rows)),
        mistakes_total=int((~right).sum()),
    )


def inspected(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of `veneer inspect`, from the facts of the task."""
    labels = [str(label) for label in facts.get("labels", ())]
    more = f", and {len(labels) - 12} more" if len(labels) > 12 else ""
    reads = [("reads", "two texts")] if facts.get("pair") else []
    return [*reads, ("labels", f"{len(labels)}: {', '.join(labels[:12])}{more}")]


def baselines(
    adapted: Adapted, train: Encoded, held_out: Encoded, outputs: Outputs, seed: int
) -> tuple[Baseline, ...]:
    """Majority, TF-IDF and the untuned base with a linear head, on the held-out texts."""
    task: Any = adapted.task
    ours, theirs = train.details, held_out.details
    name = str(theirs.name)
    known, targets = np.asarray(train.targets), np.asarray(held_out.targets)
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:_PROBE_TEXTS])
    with disabled(adapted.model):
        fitted_on = features(adapted, train, rows)
        tested_on = features(adapted, held_out, np.arange(len(held_out)))
    found = [
        majority_baseline(known, {name: targets}, task.labels),
        tfidf_baseline(joined(ours), known, {name: (joined(theirs), targets)}, task.labels, seed=seed),
        linear_probe(fitted_on, known[rows], {name: (tested_on, targets)}, task.labels, seed=seed),
    ]
    right = rows_right(targets, task.probabilities(dense(outputs)), threshold=task.threshold)
    return tuple(compared(baseline[name], right, seed=seed) for baseline in found)


def features(adapted: Adapted, encoded: Encoded, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, C) the pooled states of some texts, without the head."""
    task: Any = adapted.task
    return adapted.map_rows(encoded, rows, lambda hidden, layout: pool(hidden, layout, task.pooling))
