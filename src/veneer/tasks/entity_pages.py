"""What is written about an adapter of entities: its model card, its parts of the report, its baseline.

This file knows entities and words for people; it trains nothing.

Shapes: N sentences, W words of one, K labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import counted
from veneer.data.entities import EntityRows, Sentence
from veneer.data.ragged import Ragged
from veneer.data.tags import Entity
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Block, Folded, Paragraph, Section, Table
from veneer.evaluation.entities import EntityMetrics, count_entities, entity_metrics, f1_difference
from veneer.evaluation.word_tags import WordTags
from veneer.tasks.base import Encoded, Outputs
from veneer.tasks.kind import Card, Findings, Told

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted
    from veneer.tasks.entities import Entities

__all__ = ["entity_baselines", "entity_card", "entity_findings", "entity_lines", "onnx_entities_code"]

_WORST, _OPEN = 20, 6
_CODE = """import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification, AutoTokenizer

labels = {labels!r}
tokenizer = AutoTokenizer.from_pretrained({base!r})
base = AutoModelForTokenClassification.from_pretrained({base!r}, num_labels=len(labels))
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
words = "the text to read , as words".split()
batch = tokenizer([" ".join(words)], truncation=True, max_length={max_length}, return_offsets_mapping=True,
                  return_tensors="pt")  # of a longer text this reads the beginning; Veneer reads windows
offsets = batch.pop("offset_mapping")[0].tolist()
with torch.no_grad():
    found = model(**batch).logits[0].argmax(-1).tolist()
"""
_ONNX_CODE = """import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer

labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))["labels"]
tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")
words = "the text to read , as words".split()
batch = tokenizer([" ".join(words)], truncation=True, return_offsets_mapping=True, return_tensors="np")
given = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
offsets, found = batch["offset_mapping"][0].tolist(), session.run(["logits"], given)[0][0].argmax(-1).tolist()
"""
_WORDS_CODE = """start = 0
for word in words:  # the label of a word is that of its first token
    end = start + len(word)
    first = next((i for i, (a, b) in enumerate(offsets) if a < min(b, end) and b > start), None)
    print(word, "O" if first is None else labels[found[first]])
    start = end + 1
"""


def entity_card(adapted: Adapted) -> Card:
    """What the model card says."""
    task: Entities = adapted.task  # type: ignore[assignment]
    base = adapted.base
    limits = ["Entities do not overlap: a word belongs to one of them or to none."]
    if base.causal:
        limits.append("The base is a decoder: the label of a word is given without what comes after it.")
    return Card(
        summary=f"spans of {counted(len(task.types), 'type')} in each text: {', '.join(task.types)}",
        pipeline_tag="token-classification",
        code=_CODE.format(labels=list(task.labels), base=base.name, max_length=adapted.max_length)
        + _WORDS_CODE,
        labels=task.labels,
        limits=tuple(limits),
        commands=('veneer predict ADAPTER "a text"', "veneer evaluate ADAPTER more.conll"),
    )


def onnx_entities_code() -> str:
    """Python that reads the labels of words out of an ONNX export."""
    return _ONNX_CODE + _WORDS_CODE


def entity_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of `veneer inspect`."""
    types = list(dict.fromkeys(label[2:] for label in facts["labels"][1:]))
    rule = (
        "every sign alone" if facts["words"] == "fine" else "as blanks separate them, signs at the ends apart"
    )
    return [("types", ", ".join(types)), ("labels", ", ".join(facts["labels"])), ("words of a text", rule)]


def entity_baselines(
    adapted: Adapted, train: Encoded, held_out: Encoded, outputs: Outputs, seed: int
) -> tuple[Baseline, ...]:
    """The list of the training words, each with its commonest tag."""
    task: Entities = adapted.task  # type: ignore[assignment]
    began = time.perf_counter()
    known: EntityRows = train.details.rows
    asked: EntityRows = held_out.details.rows
    numbers = task.numbers(known)
    list_ = WordTags.fit((_words(row.text, row.words), numbers[row.tags].tolist()) for row in known)
    found = [task.decode(list_.predict(_words(row.text, row.words))) for row in asked]
    theirs = count_entities(asked.entities(), found, task.types)
    ours = task.counts(outputs, held_out)
    return (
        Baseline(
            name="a list of the training words",
            scores=entity_metrics(theirs, seed=seed).summary(),
            seconds=time.perf_counter() - began,
            note="each word has the tag that it mostly has in training",
            difference=f1_difference(ours, theirs, seed=seed),
            right=theirs.exact,
        ),
    )


def _words(text: str, places: Any) -> list[str]:
    return [text[start:end] for start, end in places]


def entity_findings(told: Told) -> Findings:
    """The sentences that it gets most wrong, and what kind of mistakes there are."""
    task: Entities = told.adapted.task  # type: ignore[assignment]
    rows: EntityRows = told.encoded.details.rows
    given, found = rows.entities(), task.found(told.outputs, told.encoded)
    wrong = np.array(
        [n for n, (a, b) in enumerate(zip(given, found, strict=True)) if set(a) != set(b)], np.int64
    )
    losses = _losses(task, told.outputs, told.encoded)
    worst = wrong[np.argsort(-losses[wrong], kind="stable")][:_WORST]
    metrics: EntityMetrics = told.metrics  # type: ignore[assignment]
    sections = [*metrics.sections(rows.name), _kinds(given, found), _reading(told)]
    if len(worst):
        table = tuple(
            (
                f"{int(rows.rows[place]) + 1:,}",
                rows[place].text,
                _shown(rows[place], given[place]),
                _shown(rows[place], found[place]),
                f"{losses[place]:.2f}",
            )
            for place in worst.tolist()
        )
        sections.insert(-1, _worst(table, len(wrong), len(rows)))
    return Findings(mistakes_total=len(wrong), sections=tuple(sections))


def _worst(rows: tuple[tuple[str, ...], ...], wrong: int, all_: int) -> Section:
    def table(part: tuple[tuple[str, ...], ...]) -> Table:
        head = ("row", "sentence", "in the data", "found", "loss a word")
        return Table(head, part, numeric=(0, 4), texts=(1, 2, 3))

    said = (
        f"{counted(wrong, 'sentence')} of {all_:,} with an entity that is not right; the largest loss first."
    )
    blocks: list[Block] = [Paragraph(said, "note"), table(rows[:_OPEN])]
    if rows[_OPEN:]:
        blocks.append(Folded(f"{len(rows) - _OPEN} more", (table(rows[_OPEN:]),)))
    return Section("Sentences it gets most wrong", tuple(blocks))


def _losses(task: Entities, outputs: Outputs, encoded: Encoded) -> NDArray[np.float64]:
    """(N,) the mean loss of a sentence's words."""
    assert isinstance(encoded.targets, Ragged)
    chances = task.probabilities(outputs)
    targets = encoded.targets.values[encoded.targets.values >= 0]
    words: Ragged = encoded.details.words
    of_word = np.repeat(np.arange(len(words)), words.lengths)
    losses = -np.log(np.maximum(chances[np.arange(len(targets)), targets], np.finfo(np.float64).tiny))
    return np.bincount(of_word, losses, minlength=len(words)) / np.maximum(words.lengths, 1)


def _shown(row: Sentence, entities: list[Entity]) -> str:
    told = [
        f"{kind}: {row.text[row.words[first][0] : row.words[stop - 1][1]]}" for first, stop, kind in entities
    ]
    return "; ".join(told) or "(none)"


def _kinds(given: list[list[Entity]], found: list[list[Entity]]) -> Section:
    """Right, of another type, with other bounds, missed, invented."""
    counts = dict.fromkeys(("right", "another type", "other bounds", "missed", "invented"), 0)
    for theirs, ours in zip(given, found, strict=True):
        right = set(theirs) & set(ours)
        counts["right"] += len(right)
        left = [one for one in ours if one not in right]
        for first, stop, kind in [one for one in theirs if one not in right]:
            near = [one for one in left if one[0] < stop and one[1] > first]
            same = next((one for one in near if one[:2] == (first, stop)), None)
            bounds = next((one for one in near if one[2] == kind), None)
            hit = same or bounds or (near[0] if near else None)
            counts["missed" if hit is None else "another type" if hit[2] != kind else "other bounds"] += 1
            if hit is not None:
                left.remove(hit)
        counts["invented"] += len(left)
    table = Table(("entities", ""), tuple((name, f"{n:,}") for name, n in counts.items()), numeric=(1,))
    note = "Another type: at the same place or touching it. Each counts as one missed and one too many in F1."
    return Section("What went wrong", (table, Paragraph(note, "note")))


def _reading(told: Told) -> Section:
    """How sentences became tokens."""
    rows: EntityRows = told.encoded.details.rows
    words: Ragged = told.encoded.details.words
    own = words.values[:, 2:]
    inside = sum(
        1
        for place, entities in enumerate(rows.entities())
        for first, stop, _ in entities
        if not _fits(words[place], first, stop)
    )
    several = len(told.encoded) - told.encoded.examples
    table = (
        ("sentences", f"{len(words):,}"),
        ("words", f"{len(rows.tags.values):,}"),
        ("words without a token of their own", f"{len(rows.tags.values) - len(own):,}"),
        ("entities that begin or end inside a token", f"{inside:,}"),
        ("windows beyond the first of a sentence", f"{several:,}"),
    )
    return Section("How the words were read", (Table(("", ""), table, numeric=(1,)),), place="end")


def _fits(words: Any, first: int, stop: int) -> bool:
    """Whether an entity begins and ends where words that are read begin and end."""
    return bool((words[:, 2] == first).any() and (words[:, 3] == stop).any())
