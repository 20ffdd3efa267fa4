"""What people read in an adapter folder: report.html with its pictures, README.md, metrics.jsonl.

All from the same facts as veneer.json. This file translates a run into the plain facts of `veneer.evaluation`; how they
look is decided there.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import yaml

from veneer.adapter import Facts
from veneer.evaluation.curves import HistoryPoint
from veneer.evaluation.facts import (
    BaseFacts,
    Choice,
    DataFacts,
    LoraFacts,
    ReportFacts,
    SpeedFacts,
    SplitFacts,
)
from veneer.evaluation.model_card import model_card
from veneer.evaluation.report import report_html
from veneer.lora import count_parameters
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import ScoreForm
from veneer.tasks.kind import Card, Findings
from veneer.training.estimate import announced
from veneer.training.loop import Trained
from veneer.training.prepare import Run
from veneer.training.reading import reading_section

if TYPE_CHECKING:
    from veneer.training.finish import Measured

__all__ = ["pages", "report_facts"]


def pages(
    run: Run, trained: Trained, measured: Measured, facts: Facts, findings: Findings, size: int
) -> dict[str, str | bytes]:
    """File name -> content of everything that is for reading.

    Args:
        run, trained, measured: what was done.
        facts: veneer.json.
        findings: the task's own parts.
        size: bytes of the adapter's tensors.
    """
    card = run.adapted.kind.card(run.adapted)
    told = report_facts(run, trained, measured, facts, findings, card, size)
    html, pictures = report_html(told)
    lines = "".join(json.dumps(entry) + "\n" for entry in trained.history)
    page = model_card(
        told,
        peft_usage=card.code,
        labels=card.labels,
        pipeline_tag=card.pipeline_tag,
        limits=card.limits,
        commands=card.commands,
    )
    return {"report.html": html, **pictures, "README.md": page, "metrics.jsonl": lines}


def report_facts(
    run: Run,
    trained: Trained,
    measured: Measured,
    facts: Facts,
    findings: Findings,
    card: Card,
    size: int,
) -> ReportFacts:
    """The run as the report and the model card take it."""
    adapted = run.adapted
    deciding, reading = adapted.task.deciding, reading_section(run)
    parameters = count_parameters(adapted.model)
    return ReportFacts(
        title=_title(run),
        task=card.summary,
        base=BaseFacts(adapted.base.name, adapted.base.content_hash, parameters.frozen),
        data=DataFacts(
            source=run.prepared.source,
            splits=tuple(_split_facts(run, split) for split in run.prepared.splits),
            choices=tuple(Choice(c.what, c.value, c.reason) for c in run.choices),
            warnings=tuple(run.warnings),
            hash=run.prepared.content_hash,
        ),
        lora=LoraFacts(
            r=adapted.lora.r,
            alpha=adapted.lora.lora_alpha,
            targets=_targets(adapted),
            trained_parameters=parameters.trainable,
            total_parameters=parameters.total,
            adapter_bytes=size,
            layers=len(adapted.report.resolution.targets),
        ),
        speed=SpeedFacts(
            seconds=float(facts.speed["seconds"]),
            training_seconds=trained.train_seconds,
            first_step_seconds=float(facts.speed["first_step_seconds"]),
            texts_per_second=float(facts.speed["texts_per_second"]),
            tokens_per_second=float(facts.speed["tokens_per_second"]),
            predicted_seconds=announced(run.identity),
        ),
        validation=measured.metrics.get("validation"),
        test=measured.metrics.get("test"),
        baselines=measured.baselines,
        history=tuple(_point(entry, trained.kept_step, deciding) for entry in trained.history),
        metric_name=deciding.name,
        metric_percent=deciding.percent,
        metric_higher_is_better=deciding.higher_is_better,
        mistakes=findings.mistakes,
        mislabelled=findings.mislabelled,
        mistakes_total=findings.mistakes_total,
        sections=(*findings.sections, *([reading] if reading is not None else [])),
        configuration=_flat(yaml.safe_load(run.config.to_yaml())),
        exactness=_exactness(facts),
        versions=facts.versions,
        machine=str(facts.speed["machine"]),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        use=card.commands,
    )


def _title(run: Run) -> str:
    source = run.prepared.source.partition(":")[0] if ":" in run.prepared.source[2:] else run.prepared.source
    return f"Adapter for {source.rsplit('/', 1)[-1]}"


def _split_facts(run: Run, split: Any) -> SplitFacts:
    return SplitFacts(split.name, len(split), run.prepared.label_counts(split))


def _targets(adapted: Adapted) -> tuple[str, ...]:
    found = adapted.lora.target_modules
    return (found,) if isinstance(found, str) else tuple(found or ())


def _point(entry: dict[str, Any], kept_step: int, deciding: ScoreForm) -> HistoryPoint:
    evaluation = entry["kind"] == "evaluation"
    # A score is better the higher it is, also where it is minus a loss.
    sign = 1 if deciding.higher_is_better else -1
    return HistoryPoint(
        step=entry["step"],
        epoch=entry["epoch"],
        examples=entry["examples"],
        train_loss=None if evaluation else entry["loss"],
        val_loss=entry["loss"] if evaluation else None,
        val_metric=sign * entry["score"] if evaluation else None,
        lr=entry.get("rate"),
        kept=evaluation and entry["step"] == kept_step,
    )


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found


def _exactness(facts: Facts) -> tuple[str, ...]:
    told = facts.exactness
    others = "LoRA weights, head and optimiser in fp32"
    precision = {
        "bf16": f"The frozen base computed in bf16 (rounded to 8 bits of mantissa), {others}",
        "int8": f"The weights of the frozen base's blocks were held in int8 (one scale for each output), {others}",
    }.get(told["precision"], "Everything computed in fp32")
    return (
        f"{precision}: {told['precision_reason']}.",
        f"Batches were {told['mode']}: {told['mode_reason']}.",
        f"Dropout in the frozen base: {told['base_dropout']}.",
        f"The adapter folder, loaded again, gives {told['stored']}.",
    )
