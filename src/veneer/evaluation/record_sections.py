"""The parts of the report that say what was done: data, adapter, time, use, configuration.

One function a section; each returns None where the facts for it are missing. This module must not know how blocks
become HTML, nor where the report is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from veneer.evaluation.blocks import Block, Folded, Paragraph, Preformatted, Section, Table
from veneer.evaluation.facts import ReportFacts
from veneer.evaluation.wording import bytes_text, count, duration

__all__ = [
    "LABEL_ROWS",
    "adapter_section",
    "data_section",
    "folded_labels",
    "record_section",
    "speed_section",
    "use_section",
]

LABEL_ROWS = 12
"""More labels than these fold their table."""


def folded_labels(table: Table, labels: int, says: str) -> Block:
    """A table with a row for each of so many labels; with many of them folded behind "`says` 40 labels"."""
    return table if labels <= LABEL_ROWS else Folded(f"{says} {labels} labels", (table,))


def data_section(facts: ReportFacts) -> Section | None:
    """What it was trained on: where the rows came from, how many of each label, what was inferred."""
    data = facts.data
    if data is None:
        return None
    blocks: list[Block] = [_pairs({"source": data.source, "content hash": data.hash})]
    blocks += [Paragraph(warning, "warning") for warning in data.warnings]
    labels = list(dict.fromkeys(label for split in data.splits for label in split.label_counts))
    names = tuple(split.name for split in data.splits)
    if names:
        totals = ("rows", *(f"{split.rows:,}" for split in data.splits))
        counts = tuple(
            (label, *(f"{s.label_counts.get(label, 0):,}" for s in data.splits)) for label in labels
        )
        table = Table(("", *names), (totals, *counts), numeric=tuple(range(1, len(names) + 1)))
        blocks.append(folded_labels(table, len(labels), "Rows of each of"))
    if data.choices:
        rows = tuple((choice.what, choice.value, choice.reason) for choice in data.choices)
        blocks.append(Table(("inferred", "as", "because"), rows, texts=(2,)))
    return Section("What it was trained on", tuple(blocks))


def adapter_section(facts: ReportFacts) -> Section | None:
    """What was trained: base, task and adapter in numbers, and how exactly it was computed."""
    base, lora = facts.base, facts.lora
    told = {
        "task": facts.task,
        "base": base.name,
        "base's content hash": base.hash,
        "base's licence": base.licence,
    }
    if base.parameters is not None:
        told["base's parameters"] = f"{base.parameters:,}"
    if lora is not None:
        share = 100 * lora.trained_parameters / max(1, lora.total_parameters)
        told |= {
            "r, alpha": f"{lora.r}, {lora.alpha:g}",
            "adapted": ", ".join(lora.targets) + (f" ({count(lora.layers, 'layer')})" if lora.layers else ""),
            "trained parameters": f"{lora.trained_parameters:,} of {lora.total_parameters:,} ({share:.2f} %)",
            "adapter on disk": bytes_text(lora.adapter_bytes),
        }
        told |= lora.details
    blocks: list[Block] = [_pairs(told)]
    if facts.exactness:
        blocks.append(Paragraph("How it was computed: " + " ".join(facts.exactness)))
    return Section("What was trained", tuple(blocks))


def speed_section(facts: ReportFacts) -> Section | None:
    """How long it took, and on which machine."""
    speed = facts.speed
    if speed is None:
        return None
    told = {"whole run": duration(speed.seconds)}
    if speed.predicted_seconds is not None:
        told["whole run, as announced"] = duration(speed.predicted_seconds)
    if speed.training_seconds is not None:
        told["of it training"] = duration(speed.training_seconds)
    if speed.first_step_seconds is not None:
        told["until the first step"] = duration(speed.first_step_seconds)
    if speed.texts_per_second is not None:
        told["texts a second"] = f"{speed.texts_per_second:,.0f}"
    if speed.tokens_per_second is not None:
        told["tokens a second"] = f"{speed.tokens_per_second:,.0f}"
    told |= speed.details
    told["machine"] = facts.machine
    return Section("How long it took", (_pairs(told),))


def use_section(facts: ReportFacts) -> Section | None:
    """The commands that use the adapter."""
    return Section("Use it", (Preformatted("\n".join(facts.use)),)) if facts.use else None


def record_section(facts: ReportFacts) -> Section | None:
    """The configuration and the versions, folded."""
    folded: list[Block] = []
    if facts.configuration:
        folded.append(
            Folded("Configuration", (_pairs({k: _plain(v) for k, v in facts.configuration.items()}),))
        )
    if facts.versions:
        folded.append(Folded("Versions", (_pairs(dict(facts.versions)),)))
    return Section("To do it again", tuple(folded)) if folded else None


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def _pairs(told: Mapping[str, str]) -> Table:
    """Two columns, name and value; empty values are left out."""
    return Table(("", ""), tuple((name, value) for name, value in told.items() if value), texts=(1,))
