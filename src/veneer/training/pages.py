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
from veneer.data.rows import Split
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
from veneer.evaluation.model_card import model_card, sequence_classification_usage
from veneer.evaluation.report import report_html
from veneer.lora import count_parameters
from veneer.models.heads import head_code, native_pooling
from veneer.tasks.adapted import Adapted
from veneer.training.estimate import announced
from veneer.training.loop import Trained
from veneer.training.prepare import Run

if TYPE_CHECKING:
    from veneer.training.finish import Measured

__all__ = ["pages", "peft_usage"]


def pages(
    run: Run, trained: Trained, measured: Measured, facts: Facts, mistakes: dict[str, Any], size: int
) -> dict[str, str | bytes]:
    """File name -> content of everything that is for reading.

    Args:
        run, trained, measured: what was done.
        facts: veneer.json.
        mistakes: `mistakes`, `mislabelled` and `mistakes_total` of `ReportFacts`.
        size: bytes of the adapter's tensors.
    """
    told = report_facts(run, trained, measured, facts, mistakes, size)
    html, pictures = report_html(told)
    lines = "".join(json.dumps(entry) + "\n" for entry in trained.history)
    labels = run.prepared.labels
    card = model_card(told, peft_usage=peft_usage(run.adapted), labels=labels, limits=_limits(run))
    return {"report.html": html, **pictures, "README.md": card, "metrics.jsonl": lines}


def report_facts(
    run: Run, trained: Trained, measured: Measured, facts: Facts, mistakes: dict[str, Any], size: int
) -> ReportFacts:
    """The run as the report and the model card take it."""
    adapted = run.adapted
    kind = "any of" if run.prepared.multi_label else "one of"
    parameters = count_parameters(adapted.model)
    return ReportFacts(
        title=_title(run),
        task=f"{kind} {len(run.prepared.labels)} labels for each text",
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
        history=tuple(_point(entry, trained.kept_step) for entry in trained.history),
        **mistakes,
        configuration=_flat(yaml.safe_load(run.config.to_yaml())),
        exactness=_exactness(facts),
        versions=facts.versions,
        machine=str(facts.speed["machine"]),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        use=('veneer predict ADAPTER "a text"', "veneer evaluate ADAPTER more.csv"),
    )


def peft_usage(adapted: Adapted) -> str:
    """Python code that gives this adapter's answers with transformers and PEFT alone."""
    task: Any = adapted.task
    base, labels = adapted.base, list(task.labels)
    cut = f"truncation=True, max_length={adapted.max_length}"
    if native_pooling(adapted.model) == base.pooling:
        code = sequence_classification_usage(base.name, labels, several=task.multi_label, decoder=base.causal)
        return code.replace("truncation=True", cut)
    pooled = {
        "mean": "(states * inside).sum(1) / inside.sum(1)",
        "first": "states[:, 0]",
        "last": "states[torch.arange(len(states)), inside.sum(1).squeeze(-1) - 1]",
    }[base.pooling]
    padding = "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token\n" if base.causal else ""
    chances = "sigmoid()" if task.multi_label else "softmax(-1)"
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"labels = {labels!r}\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base.name!r})\n"
        f"{padding}"
        f"base = AutoModelForSequenceClassification.from_pretrained({base.name!r}, num_labels=len(labels))\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()\n'
        f'batch = tokenizer(["the text to classify"], padding=True, {cut}, return_tensors="pt")\n'
        f"with torch.no_grad():  # this adapter pools by the {base.pooling}, which transformers' class does not\n"
        "    states = base.base_model(**batch).last_hidden_state  # (B, L, C)\n"
        '    inside = batch["attention_mask"].unsqueeze(-1)  # (B, L, 1)\n'
        f"    logits = {head_code(adapted.model, pooled)}\n"
        f"print(labels, logits.{chances})\n"
    )


def _title(run: Run) -> str:
    source = run.prepared.source.partition(":")[0] if ":" in run.prepared.source[2:] else run.prepared.source
    return f"Adapter for {source.rsplit('/', 1)[-1]}"


def _split_facts(run: Run, split: Split) -> SplitFacts:
    return SplitFacts(split.name, len(split), run.prepared.label_counts(split))


def _targets(adapted: Adapted) -> tuple[str, ...]:
    found = adapted.lora.target_modules
    return (found,) if isinstance(found, str) else tuple(found or ())


def _point(entry: dict[str, Any], kept_step: int) -> HistoryPoint:
    evaluation = entry["kind"] == "evaluation"
    return HistoryPoint(
        step=entry["step"],
        epoch=entry["epoch"],
        examples=entry["examples"],
        train_loss=None if evaluation else entry["loss"],
        val_loss=entry["loss"] if evaluation else None,
        val_metric=entry["score"] if evaluation else None,
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
    precision = (
        "The frozen base computed in bf16 (rounded to 8 bits of mantissa), LoRA weights, head and optimiser in fp32"
        if told["precision"] == "bf16"
        else "Everything computed in fp32"
    )
    return (
        f"{precision}: {told['precision_reason']}.",
        f"Batches were {told['mode']}: {told['mode_reason']}.",
        f"Dropout in the frozen base: {told['base_dropout']}.",
    )


def _limits(run: Run) -> list[str]:
    longest = run.adapted.max_length
    return [f"A text longer than {longest} tokens is cut; what stands after that is not read."]
