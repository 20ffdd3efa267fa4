"""What is written about an adapter that gives numbers: its model card, its part of the report, and simpler means.

This file knows numbers and the plain facts of `veneer.evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from veneer.data.rows import Split
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Block, Folded, Paragraph, Picture, Section, Table
from veneer.evaluation.number_baselines import mean_baseline, probe_ridge, tfidf_ridge
from veneer.evaluation.number_picture import given_and_answered
from veneer.evaluation.wording import shortened
from veneer.lora import disabled
from veneer.tasks.base import Encoded, Outputs
from veneer.tasks.classification_pages import PROBE_TEXTS, cut_limit, features
from veneer.tasks.kind import Card, Findings, Told
from veneer.tasks.sequence_code import sequence_code
from veneer.tasks.texts import joined

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = ["baselines", "card", "findings", "inspected"]

_SHOWN, _OPEN = 30, 8  # of the largest errors; of which not folded


def card(adapted: Adapted) -> Card:
    """For the model card."""
    task: Any = adapted.task
    plain = (task.mean, task.scale) == (0.0, 1.0)
    factor = "" if task.scale == 1.0 else f"{task.scale!r} * "
    added = "" if task.mean == 0.0 else f"{task.mean!r} + "
    pair = ' --pair "another"' if task.pair else ""
    return Card(
        summary=f"a number for each {'pair of texts' if task.pair else 'text'}",
        pipeline_tag="text-classification",  # the hub has no word of its own for it
        code=sequence_code(adapted, answer=f"print(({added}{factor}logits[:, 0]).tolist())", plain=plain),
        limits=(cut_limit(adapted), "The numbers hold in the range of those it was trained on."),
        commands=(f'veneer predict ADAPTER "a text"{pair}', "veneer evaluate ADAPTER more.csv"),
    )


def findings(told: Told) -> Findings:
    """Given numbers against answers, and the rows where they are furthest apart."""
    task: Any = told.adapted.task
    split: Split = told.rows
    given, said = np.asarray(split.labels, np.float64), task.values(told.outputs)
    off = np.abs(said - given)
    worst = np.argsort(-off, kind="stable")[:_SHOWN]
    texts = joined(split.select(worst))
    rows = tuple(
        (
            str(int(split.rows[place]) + 1),
            shortened(text, 320),
            f"{given[place]:.4g}",
            f"{said[place]:.4g}",
            f"{said[place] - given[place]:+.4g}",
        )
        for place, text in zip(worst.tolist(), texts, strict=True)
    )

    def table(part: tuple[tuple[str, ...], ...]) -> Table:
        return Table(("row", "text", "given", "answer", "off by"), part, numeric=(0, 2, 3, 4), texts=(1,))

    blocks: list[Block] = [
        Paragraph(f"The largest errors on the {split.name} rows.", "note"),
        table(rows[:_OPEN]),
    ]
    if len(rows) > _OPEN:
        blocks.append(Folded(f"{len(rows) - _OPEN} more", (table(rows[_OPEN:]),)))
    picture = Picture(
        given_and_answered(given, said),
        "numbers.png",
        "Given numbers against answers, a point a row",
        f"The {split.name} rows: on the line the answer is the given number.",
    )
    return Findings(
        sections=(
            Section("Given and answered", (picture,)),
            Section("Where it is furthest off", tuple(blocks)),
        )
    )


def inspected(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of `veneer inspect`, from the facts of the task."""
    reads = [("reads", "two texts")] if facts.get("pair") else []
    mean, scale = facts.get("mean", 0.0), facts.get("scale", 1.0)
    beside = "" if (mean, scale) == (0.0, 1.0) else f": {mean:g} + {scale:g} times the head's output"
    return [*reads, ("gives", f"a number{beside}")]


def baselines(
    adapted: Adapted, train: Encoded, held_out: Encoded, outputs: Outputs, seed: int
) -> tuple[Baseline, ...]:
    """The mean, TF-IDF and the untuned base, with ridge regression, on the held-out texts."""
    task: Any = adapted.task
    known, targets = (np.asarray(part.targets, np.float64) for part in (train, held_out))
    said = task.values(outputs)
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:PROBE_TEXTS])
    with disabled(adapted.model):
        fitted_on = features(adapted, train, rows)
        tested_on = features(adapted, held_out, np.arange(len(held_out)))
    texts = joined(train.details), joined(held_out.details)
    return (
        mean_baseline(known, targets, said, seed=seed),
        tfidf_ridge(texts[0], known, texts[1], targets, said, seed=seed),
        probe_ridge(fitted_on, known[rows], tested_on, targets, said, seed=seed),
    )
