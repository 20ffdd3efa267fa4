"""Small runs, for the tests of training and of adapter folders: a table, a tiny base, a configuration of a second."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bases import tiny_bert, tiny_gpt2
from veneer.training.config import TrainConfig

SPAM = "win prize free call now money".split()  # noqa: SIM905
HAM = "thanks good film great love help late order".split()  # noqa: SIM905


def messages(path: Path, rows: int = 60, labels: tuple[str, ...] = ("ham", "spam")) -> Path:
    """A table of short texts of 1 to 9 words whose label can be learned."""
    draw = np.random.default_rng(0)
    words = {0: HAM, 1: SPAM, 2: ["film", "awful", "bad", "hate"]}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(rows):
            label = row % len(labels)
            text = " ".join(draw.choice(words[label]) for _ in range(int(draw.integers(1, 9))))
            writer.writerow([f"{text} {row}", labels[label]])
    return path


def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes longer than everything else."""
    monkeypatch.setattr("veneer.training.pages.report_html", lambda _: ("<html></html>", {}))


def config(folder: Path, *, kind: str = "bert", **changes: Any) -> TrainConfig:
    """A run on `messages` in `folder`; makes the table and the base where they are not there yet."""
    table, base = folder / "messages.csv", folder / kind
    if not table.is_file():
        messages(table)
    if not base.is_dir():
        (tiny_gpt2 if kind == "gpt2" else tiny_bert)(base)
        if kind == "sentence":  # as sentence-transformers publishes its encoders
            (base / "1_Pooling").mkdir()
            (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    given: dict[str, Any] = {
        "data": {"source": str(table)},
        "base": str(base),
        "lora": {"r": 4},
        "epochs": 2,
        "batch_size": 8,
        "precision": "fp32",
        "device": "cpu",
        "baselines": False,
    }
    return TrainConfig.parse(given | changes)


def two_files(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of the two files that the same run writes again."""
    return (folder / "adapter_model.safetensors").read_bytes(), (folder / "adapter_config.json").read_bytes()
