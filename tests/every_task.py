"""The table of `test_every_task`: what a task is tried on. A new task is one more entry."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bases import tiny_bert, tiny_gpt2
from reference.causal import causal_base

__all__ = ["ENTRIES", "Entry", "typed_bert"]

GOOD, BAD = "love great good thanks help".split(), "hate awful bad late refund".split()  # noqa: SIM905


@dataclass(frozen=True)
class Entry:
    """A task on some data.

    kind        its name, which has to be inferred from the data and the base
    write       writes labelled data into a folder, and returns what to train on
    base        writes a tiny base into a folder
    inputs      what to answer, as `Adapted.predict` takes it
    command     the same, the first of them, as arguments of `veneer predict`
    golden      inputs whose numbers are compared with PEFT's; default: `inputs`
    changes     of the training configuration
    """

    kind: str
    write: Callable[[Path], Path]
    base: Callable[[Path], Path]
    inputs: tuple[Any, ...]
    command: tuple[str, ...]
    golden: tuple[Any, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


def _phrases(rows: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts, each with how many of its words are good ones."""
    draw = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        good = int(draw.integers(0, 5))
        words = [*draw.choice(GOOD, good), *draw.choice(BAD, 4 - good), f"film {row}"]
        draw.shuffle(words)
        found.append((" ".join(words), good))
    return found


def _csv(path: Path, **columns: list[Any]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
    return path


def labels(folder: Path) -> Path:
    """A label for each text."""
    rows = _phrases(60)
    return _csv(
        folder / "labels.csv",
        text=[text for text, _ in rows],
        label=["good" if good > 2 else "bad" for _, good in rows],
    )


def several(folder: Path) -> Path:
    """Several labels for each text."""
    rows = _phrases(60)
    named = [["kind", "long", "short"][: 1 + good // 2] for _, good in rows]
    return _csv(folder / "several.csv", text=[text for text, _ in rows], labels=["|".join(n) for n in named])


def numbers(folder: Path) -> Path:
    """A number for each text."""
    rows = _phrases(60)
    return _csv(
        folder / "numbers.csv", text=[text for text, _ in rows], score=[f"{20 + 2.5 * n}" for _, n in rows]
    )


def pairs(folder: Path) -> Path:
    """A label for each two texts."""
    ones, others = _phrases(60), _phrases(60, 1)
    return _csv(
        folder / "pairs.csv",
        premise=[text for text, _ in ones],
        hypothesis=[text for text, _ in others],
        label=[
            "same" if (a > 2) == (b > 2) else "other" for (_, a), (_, b) in zip(ones, others, strict=True)
        ],
    )


def similar(folder: Path) -> Path:
    """A number for each two texts."""
    ones, others = _phrases(60), _phrases(60, 1)
    close = [f"{5 - abs(a - b) * 0.75}" for (_, a), (_, b) in zip(ones, others, strict=True)]
    return _csv(
        folder / "similar.csv",
        sentence1=[text for text, _ in ones],
        sentence2=[text for text, _ in others],
        score=close,
    )


def spans(folder: Path) -> Path:
    """Entities as JSON spans of characters."""
    path, draw, lines = folder / "spans.jsonl", np.random.default_rng(0), []
    for row in range(60):
        name, place = str(draw.choice(["anna", "bob"])), str(draw.choice(["paris", "rome"]))
        text = f"{name} is in {place} now {row}"
        start = text.index(place)
        found = [
            {"start": 0, "end": len(name), "label": "PER"},
            {"start": start, "end": start + len(place), "label": "LOC"},
        ]
        lines.append(json.dumps({"text": text, "entities": found}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tagged(folder: Path) -> Path:
    """Entities as CoNLL columns."""
    draw, blocks = np.random.default_rng(0), []
    for row in range(40):
        name, place = str(draw.choice(["Anna", "Bob"])), str(draw.choice(["New York", "Rome"])).split()
        words = [(name, "B-PER"), ("is", "O"), ("in", "O"), *zip(place, ("B-LOC", "I-LOC"), strict=False)]
        blocks.append("".join(f"{word}\t{tag}\n" for word, tag in [*words, (f"now{row}", "O")]))
    path = folder / "tagged.conll"
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


def squad(folder: Path, none_every: int = 0) -> Path:
    """Questions on contexts, in SQuAD's format, some of them with two windows, one in `none_every` without answer."""
    draw, paragraphs = np.random.default_rng(0), []
    for row in range(40):
        who, what = str(draw.choice(["anna", "bob", "you"])), str(draw.choice(["film", "order", "prize"]))
        context = f"{row} {who} love the {what} and it is {'not ' * int(draw.integers(0, 9))}late"
        answer = {"text": what, "answer_start": context.index(what)}
        asked: dict[str, Any] = {"id": str(row), "question": f"what to love {row}", "answers": [answer]}
        if none_every:
            asked["is_impossible"] = row % none_every == 0
            asked |= {"question": "you hate", "answers": []} if asked["is_impossible"] else {}
        paragraphs.append({"context": context, "qas": [asked]})
    path = folder / "squad.json"
    version = "v2.0" if none_every else "1.1"
    path.write_text(json.dumps({"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def squad_2(folder: Path) -> Path:
    """The same with questions that have no answer, as SQuAD 2 has them."""
    return squad(folder, none_every=3)


def alpaca(folder: Path) -> Path:
    """Instructions with their answers."""
    rows = [{"instruction": f"count {row}", "input": "", "output": f"{row + 1} is next"} for row in range(40)]
    path = folder / "alpaca.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def plain(folder: Path) -> Path:
    """Documents of a text file."""
    path = folder / "plain.txt"
    path.write_text("\n\n".join(f"{row} and {row + 1} and so on" for row in range(40)), encoding="utf-8")
    return path


def _bert(folder: Path) -> Path:
    return tiny_bert(folder, max_length=48)


def typed_bert(folder: Path) -> Path:
    """The same with a tokenizer that tells the second text from the first by token types, as BERT's own does."""
    path = _bert(folder) / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _writer(folder: Path) -> Path:
    return causal_base(folder, "gpt2", max_length=400)


TEXTS = ("love the film 3", "an awful film, and late: refund my money")
PAIR = {"text": "a great film 3", "text_pair": "thanks, i love it"}
ASKED = {"question": "what to love", "context": "7 bob love the order and it is late"}

ENTRIES: dict[str, Entry] = {
    "labels": Entry("classification", labels, _bert, TEXTS, (TEXTS[0],)),
    "labels, DoRA": Entry(
        "classification",
        labels,
        tiny_gpt2,
        TEXTS,
        (TEXTS[0],),
        changes={"lora": {"r": 4, "use_dora": True}},
    ),
    "several labels": Entry("classification", several, _bert, TEXTS, (TEXTS[0],)),
    "numbers": Entry("regression", numbers, _bert, TEXTS, (TEXTS[0],)),
    "pairs": Entry("classification", pairs, typed_bert, (PAIR,), (PAIR["text"], "--pair", PAIR["text_pair"])),
    "similar pairs": Entry(
        "regression", similar, typed_bert, (PAIR,), (PAIR["text"], "--pair", PAIR["text_pair"])
    ),
    "entities": Entry(
        "entities", spans, _bert, ("anna is in rome now", "rome, bob"), ("anna is in rome now",)
    ),
    "tagged words": Entry(
        "entities", tagged, tiny_gpt2, ({"text": "Bob is in New York"}, "Anna?"), ("Bob is in New York",)
    ),
    "answers": Entry(
        "answers", squad, typed_bert, (ASKED,), (ASKED["question"], "--context", ASKED["context"])
    ),
    "answers or none": Entry(
        "answers", squad_2, _bert, (ASKED,), (ASKED["question"], "--context", ASKED["context"])
    ),
    "numbers by a decoder": Entry("regression", numbers, tiny_gpt2, TEXTS, (TEXTS[0],)),
    "plain text": Entry(
        "instructions", plain, _writer, ("3 and 4",), ("3 and 4",), golden=({"text": "3 and 4 and so on"},)
    ),
    "instructions": Entry(
        "instructions",
        alpaca,
        _writer,
        ({"instruction": "count 3"},),
        ("count 3",),
        golden=({"instruction": "count 3", "output": "4 is next"},),
    ),
}
