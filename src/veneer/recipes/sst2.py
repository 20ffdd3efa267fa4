"""sst2-partial, sst2-hook, sst2-peft and sst2: three ways to adapt Hugging Face's GPT-2 to SST-2, side by side.

GLUE's training set is split 80 / 20 at random, and GLUE's validation set (872 sentences) is the test. Texts are
padded on the right to 128, and GPT-2's own classifier reads the last real token. The ways themselves are in
`ways.py`. With `efficient` the texts lie packed end to end and GPT-2's dropout is off; the batches are the same.

Shapes: B texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veneer.data.config import DataConfig
from veneer.data.sources import load_source
from veneer.engine import Runner, pack
from veneer.evaluation.accuracies import accuracy_picture
from veneer.evaluation.curves import HistoryPoint
from veneer.evaluation.wording import bytes_text
from veneer.files import write_bytes
from veneer.recipes.gpt2 import END_OF_TEXT, MEANINGLESS, Gpt2, find_gpt2
from veneer.recipes.loop import Plan, Rows, Task, accuracy, fit
from veneer.recipes.options import Options, Say
from veneer.recipes.storing import write_figures
from veneer.recipes.ways import PREPARE, Ready, check_way

__all__ = ["LEAK", "Sst2", "padded_logits", "run", "sst2_data"]

LENGTH, BATCH, EPOCHS, RATE = 128, 16, 3, 5e-5
PUBLISHED = {
    "partial": (0.8406, 0.8830, 0.8865),
    "hook": (0.7546, 0.8314, 0.8578),
    "peft": (0.7970, 0.8303, 0.8486),
}
LEAK = (
    "93 % of this split's short phrases stand inside a training phrase, so this figure is too high; GLUE's "
    "validation set is the one that counts."
)


@dataclass(frozen=True)
class Sst2:
    """Token ids and labels (0 negative, 1 positive) of each set: "train" and "split" (80 / 20), "glue" (872)."""

    ids: Mapping[str, list[list[int]]]
    labels: Mapping[str, Rows]


def run(options: Options, say: Say, *, name: str, ways: Sequence[str]) -> dict[str, Any]:
    """Some of the three ways, one after the other; their figures as JSON values. See `veneer.recipes.run`."""
    for way in ways:
        check_way(way)
    gpt2 = find_gpt2(options)
    data = sst2_data(options, gpt2)
    folder = options.folder(name)
    say(f"base: {gpt2.name}. Files go to {folder}.")
    if gpt2.random:
        say(MEANINGLESS)
    sizes = {part: len(labels) for part, labels in data.labels.items()}
    real = sum(len(ids) for part in ("train", "split") for ids in data.ids[part])
    say(
        f"rows: {sizes['train']:,} train, {sizes['split']:,} split off, {sizes['glue']:,} of GLUE's validation set"
    )
    say(
        f"tokens of GLUE's training set: {real:,} real, {LENGTH * (sizes['train'] + sizes['split']):,} padded"
    )
    figures: dict[str, Any] = gpt2.facts() | {"recipe": name, "rows": sizes, "tokens": real}
    figures |= {"packed": options.efficient, "ways": {}}
    for way in ways:
        figures["ways"][way] = _run_way(way, gpt2, data, options, say, folder / way)
    _compare(figures["ways"], say)
    if gpt2.random:
        say(MEANINGLESS)
    write_figures(folder / "figures.json", figures)
    return figures


def sst2_data(options: Options, gpt2: Gpt2) -> Sst2:
    """GLUE's SST-2 from the hub or a folder with train.tsv and dev.tsv, split 80 / 20 by the seed."""
    loaded = load_source(
        DataConfig.parse({"source": "sst2" if options.data is None else f"sst2:{options.data}"})
    )
    assert loaded.test is not None
    assert loaded.label_column is not None
    order = (
        np.random.default_rng(options.seed)
        .permutation(len(loaded.table))
        .astype(np.int64)[: options.max_rows]
    )
    cut = int(0.8 * len(order))
    parts = {
        "train": (loaded.table, order[:cut]),
        "split": (loaded.table, order[cut:]),
        "glue": (loaded.test, np.arange(len(loaded.test), dtype=np.int64)),
    }
    ids, labels = {}, {}
    for name, (table, rows) in parts.items():
        text = next(column for column in table.columns if column not in (loaded.label_column, "idx"))
        ids[name] = gpt2.encode([cell or "" for cell in table.take(text, rows)])
        labels[name] = np.array([cell == "1" for cell in table.take(loaded.label_column, rows)], np.int64)
    return Sst2(ids, labels)


def padded_logits(model: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    """(B, 2): transformers' own forward over texts filled up to 128 tokens."""
    rows = [list(text[:LENGTH]) for text in ids]
    input_ids = torch.tensor([row + [END_OF_TEXT] * (LENGTH - len(row)) for row in rows])  # (B, 128)
    mask = torch.tensor([[1] * len(row) + [0] * (LENGTH - len(row)) for row in rows])
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask).logits
    return logits


def _task(ready: Ready, data: Sst2, part: str, runner: Runner | None) -> Task:
    """How the model answers a set: padded by its own forward, or packed by the engine."""

    def logits(rows: Rows) -> Tensor:
        ids = [data.ids[part][row] for row in rows]
        if runner is None:
            return padded_logits(ready.model, ids)
        batch = pack([text[:LENGTH] for text in ids])
        hidden = runner.hidden_states(batch, batch.layout.last)  # (B, C), in packed order
        found: Tensor = ready.classifier.score(hidden)
        return found[torch.argsort(torch.tensor(batch.order))]

    return Task(data.labels[part], logits)


def _run_way(way: str, gpt2: Gpt2, data: Sst2, options: Options, say: Say, folder: Path) -> dict[str, Any]:
    """Prepare, train with an accuracy after each epoch, store."""
    model = gpt2.transformers_classifier(options.seed)
    whole = 4 * sum(p.numel() for p in model.parameters())
    ready = PREPARE[way](model, options.seed)
    runner = Runner.of(ready.classifier, mode="packed") if options.efficient else None
    if options.efficient:
        _without_dropout_(ready.model)
    tasks = {part: _task(ready, data, part, runner) for part in ("train", "split", "glue")}
    trainable = sum(p.numel() for p in ready.parameters)
    plan = Plan(EPOCHS, BATCH, RATE, weight_decay=0.01, eval_every=500 if options.max_steps is None else 50,
                max_steps=options.max_steps, seed=options.seed)  # fmt: skip
    how = "packed, without dropout" if options.efficient else f"padded to {LENGTH}"
    say(
        f"--- {way}: {ready.title}; {trainable:,} trainable; batch {BATCH}, AdamW {RATE:g}, {EPOCHS} epochs, {how}"
    )
    batches = 10 if options.max_steps is not None else None

    def after_epoch() -> dict[str, Any]:
        found = {part: accuracy(tasks[part], batch_size=BATCH, batches=batches) for part in ("split", "glue")}
        few = " (10 batches; stopped by max_steps)" if batches else ""
        say(f"accuracy on GLUE's validation set: {found['glue']:.4f}{few}")
        say(f"accuracy on the 20 % split: {found['split']:.4f}{few}. {LEAK}")
        return found

    done = fit(
        ready.model, ready.parameters, tasks["train"], tasks["split"], plan, say, after_epoch=after_epoch
    )
    stored = ready.store(folder / "stored", gpt2.name)
    say(f"trained {done.steps:,} steps in {done.train_seconds:.1f} s: {done.examples_per_s:.1f} examples/s")
    say(f"stored: {bytes_text(stored)} in {folder / 'stored'}; a whole model would be {bytes_text(whole)}")
    points = [HistoryPoint(0, each["epoch"], each["examples"]) for each in done.epochs]
    shares = {"GLUE's validation set": [each["glue"] for each in done.epochs],
              "20 % split (leaks)": [each["split"] for each in done.epochs]}  # fmt: skip
    note = "random weights: the accuracy means nothing" if gpt2.random else ""
    write_bytes(folder / "accuracy.png", accuracy_picture(points, shares, note=note))
    return {
        "trainable": trainable,
        "epochs": done.epochs,
        "steps": done.steps,
        "train_seconds": done.train_seconds,
        "examples_per_s": done.examples_per_s,
        "stored_bytes": stored,
        "whole_model_bytes": whole,
        "losses": [[p.step, p.train_loss, p.val_loss] for p in done.history],
    }


def _without_dropout_(model: torch.nn.Module) -> None:
    """Set every dropout of the model to 0: attention dropout would force a slow path."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _compare(ways: Mapping[str, Any], say: Say) -> None:
    """One line a way, and the published accuracies of each."""
    heads = f"{'trainable':>11}{'on disk':>10}{'examples/s':>12}{'seconds':>10}"
    say(f"{'':<9}{heads}  accuracy (GLUE) by epoch; published")
    for name, way in ways.items():
        shares = " ".join(f"{each['glue']:.4f}" for each in way["epochs"])
        published = " ".join(f"{share:.4f}" for share in PUBLISHED[name])
        sizes = f"{way['trainable']:>11,}{bytes_text(way['stored_bytes']):>10}"
        speed = f"{way['examples_per_s']:>12.1f}{way['train_seconds']:>10.1f}"
        say(f"{name:<9}{sizes}{speed}  {shares}; {published}")
