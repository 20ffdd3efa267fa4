"""The model card: README.md of an adapter folder, written from the facts of the report.

Front matter as the Hugging Face hub reads it, then what the adapter is, how to use it with Veneer and with
PEFT, how good it is, what it was trained on, and what it is not for. This module knows facts and Markdown; it
must not know how a head pools or how an adapter is loaded: the code for that is given to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from veneer.evaluation.facts import ReportFacts
from veneer.evaluation.metrics import ClassificationMetrics
from veneer.evaluation.scores import Score
from veneer.evaluation.verdict import verdict_of
from veneer.evaluation.wording import bytes_text, duration

__all__ = ["model_card", "sequence_classification_usage"]


def sequence_classification_usage(
    base: str,
    labels: Sequence[str],
    *,
    several: bool = False,
    decoder: bool = False,
    adapter: str = "path/to/this/folder",
    number: bool = False,
) -> str:
    """Python code that uses the adapter with PEFT alone, where pooling is what transformers' own class does.

    That is the first token for BERT-like encoders and the last real token for decoders. several: any number
    of labels for each text. decoder: the base has no padding token of its own. number: the head gives one number, and
    there are no labels.
    """
    padding = (
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token\n"
        "base.config.pad_token_id = tokenizer.pad_token_id\n"
        if decoder
        else ""
    )
    answer = (
        "chances = logits.sigmoid()[0].tolist()\n"
        "print([label for label, chance in zip(labels, chances) if chance > 0.5])"
        if several
        else "print(labels[logits.argmax(-1).item()], logits.softmax(-1).max().item())"
    )
    if number:
        answer = "print(logits[:, 0].tolist())"
    named = "" if number else f"labels = {list(labels)!r}\n"
    outputs = "1" if number else "len(labels)"
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"{named}"
        f"tokenizer = AutoTokenizer.from_pretrained({base!r})\n"
        f"base = AutoModelForSequenceClassification.from_pretrained({base!r}, num_labels={outputs})\n"
        f"{padding}"
        f"model = PeftModel.from_pretrained(base, {adapter!r}).eval()\n"
        'batch = tokenizer(["the text to classify"], padding=True, truncation=True, return_tensors="pt")\n'
        "with torch.no_grad():\n"
        "    logits = model(**batch).logits\n"
        f"{answer}\n"
    )


def model_card(
    facts: ReportFacts,
    *,
    peft_usage: str,
    veneer_usage: str = "",
    adapter: str = "path/to/this/folder",
    labels: Sequence[str] = (),
    pipeline_tag: str = "text-classification",
    limits: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> str:
    """README.md of the adapter folder, with YAML front matter.

    peft_usage: Python code that answers as this adapter does with PEFT alone: `sequence_classification_usage`
    where the pooling is transformers' own, else code that pools as the adapter was trained (mean over the
    tokens, say). adapter: the folder's name in the commands. commands: lines of the shell that use it, with ADAPTER for
    the folder; none: those of a classifier. limits: further sentences on what the adapter is
    not for.
    """
    import yaml

    matter = yaml.safe_dump(
        _front_matter(facts, pipeline_tag), sort_keys=False, allow_unicode=True, width=110
    )
    parts = [
        f"---\n{matter}---",
        f"# {_inline(facts.title)}",
        _what_it_is(facts, labels),
        "## Use it\n\nWith Veneer:\n\n" + _fence(_command_lines(adapter, commands), "sh"),
        _fence(veneer_usage, "python") if veneer_usage else "",
        "With PEFT alone:\n\n" + _fence(peft_usage, "python"),
        _how_good(facts),
        _data(facts),
        _training(facts),
        _limits(facts, limits),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: ReportFacts, pipeline_tag: str) -> dict[str, Any]:
    """The keys that the hub reads. Licence: the base's, where it is known."""
    matter: dict[str, Any] = {"library_name": "peft", "base_model": facts.base.name}
    if facts.base.licence:
        matter["license"] = facts.base.licence
    matter["pipeline_tag"] = pipeline_tag
    matter["tags"] = ["lora", "veneer", pipeline_tag]
    named = {score.key for score in (facts.decisive[1].summary().scores if facts.decisive else ())}
    known = {"accuracy": "accuracy", "macro_f1": "f1"} if "f1" not in named else {"f1": "f1"}
    if facts.decisive is None:
        return matter
    split, metrics = facts.decisive
    scores = [score for score in metrics.summary().scores if score.key in known] or [
        metrics.summary().primary
    ]
    matter["metrics"] = [known.get(score.key, score.key) for score in scores]
    source = facts.data.source if facts.data else "unknown"
    results = [
        {"type": known.get(score.key, score.key), "name": score.name, "value": round(score.value, 4)}
        for score in scores
    ]
    dataset = {
        "name": source,
        "type": re.sub(r"[^\w./-]+", "-", source).strip("-") or "unknown",
        "split": split,
    }
    matter["model-index"] = [
        {
            "name": facts.title,
            "results": [{"task": {"type": pipeline_tag}, "dataset": dataset, "metrics": results}],
        }
    ]
    return matter


def _what_it_is(facts: ReportFacts, labels: Sequence[str]) -> str:
    said = (
        f"A LoRA adapter over `{_code(facts.base.name)}`, trained with Veneer. Task: {_inline(facts.task)}."
    )
    if labels:
        said += " Labels: " + ", ".join(f"`{_code(label)}`" for label in labels) + "."
    verdict = verdict_of(facts)
    return f"{said}\n\n**{_inline(verdict.title)}.** {_inline(verdict.sentence)}"


def _command_lines(adapter: str, commands: Sequence[str]) -> str:
    name = f'"{adapter}"' if " " in adapter else adapter
    given = commands or ('veneer predict ADAPTER "the text to classify"',)
    return "".join(f"{line.replace('ADAPTER', name)}\n" for line in (*given, "veneer inspect ADAPTER"))


def _how_good(facts: ReportFacts) -> str:
    if facts.decisive is None:
        return ""
    splits = [
        (n, m.summary()) for n, m in (("test", facts.test), ("validation", facts.validation)) if m is not None
    ]
    heads = ["", *(f"{name} ({scores.n:,} {scores.unit})" for name, scores in splits)]
    rows = [
        [score.name, *(_cell(scores.get(score.key)) for _, scores in splits)] for score in splits[0][1].scores
    ]
    text = "## How good it is\n\n" + _table(heads, rows)
    if facts.baselines:
        primary = splits[0][1].primary
        rivals = [
            [baseline.name, _cell(baseline.scores.get(primary.key)), baseline.note]
            for baseline in facts.baselines
        ]
        text += f"\n\nOn the same {splits[0][0]} rows:\n\n" + _table(
            ["baseline", primary.name, "note"], rivals
        )
    confidence = next((s.interval.name for s in splits[0][1].scores if s.interval is not None), "")
    return text + (f"\n\nIn brackets: the {confidence}, by bootstrap." if confidence else "")


def _cell(score: Score | None) -> str:
    if score is None:
        return "–"
    return f"{score.text} ({score.interval_text})" if score.interval_text else score.text


def _data(facts: ReportFacts) -> str:
    data = facts.data
    if data is None:
        return ""
    rows = ", ".join(f"{split.rows:,} {split.name}" for split in data.splits)
    lines = [f"- Source: {_inline(data.source)}", f"- Rows: {rows}" if rows else ""]
    lines.append(f"- Content hash: `{_code(data.hash)}`" if data.hash else "")
    lines += [f"- {_inline(warning)}" for warning in data.warnings]
    return "## Data\n\n" + "\n".join(line for line in lines if line)


def _training(facts: ReportFacts) -> str:
    lines = [
        f"- Base: `{_code(facts.base.name)}`" + (f", `{_code(facts.base.hash)}`" if facts.base.hash else "")
    ]
    lora = facts.lora
    if lora is not None:
        targets = ", ".join(f"`{_code(target)}`" for target in lora.targets)
        lines.append(f"- LoRA: r {lora.r}, alpha {lora.alpha:g}, on {targets}")
        lines.append(
            f"- Trained parameters: {lora.trained_parameters:,} of {lora.total_parameters:,}; "
            f"{bytes_text(lora.adapter_bytes)} on disk"
        )
    if facts.speed is not None:
        machine = f" on {_inline(facts.machine)}" if facts.machine else ""
        lines.append(f"- Time: {duration(facts.speed.seconds)}{machine}")
    lines += [f"- {_inline(note)}" for note in facts.exactness]
    if facts.versions:
        lines.append(
            "- Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items())
        )
    return "## Training\n\n" + "\n".join(lines)


def _limits(facts: ReportFacts, limits: Sequence[str]) -> str:
    single = facts.decisive is not None and isinstance(facts.decisive[1], ClassificationMetrics)
    said = [
        "The numbers hold for texts like those it was trained on; other sources, languages or times need a "
        "test of their own.",
        *(
            ["It always answers with one of its labels, also for texts that belong to none."]
            if single
            else []
        ),
        *verdict_of(facts).advice,
        *limits,
    ]
    return "## Limits\n\n" + "\n".join(f"- {_inline(sentence)}" for sentence in said)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(_inline(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _fence(code: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def _inline(text: str) -> str:
    """Text on one line that Markdown shows as it is: no markup, no HTML."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text that can stand between backticks."""
    return " ".join(text.split()).replace("`", "'")
