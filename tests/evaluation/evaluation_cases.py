"""Facts of a made-up run, with texts and labels that try to break a page."""

from __future__ import annotations

import numpy as np

from veneer.evaluation import (
    BaseFacts,
    Choice,
    DataFacts,
    HistoryPoint,
    LoraFacts,
    ReportFacts,
    SpeedFacts,
    SplitFacts,
    classification_metrics,
    compared,
    likely_mislabelled,
    majority_baseline,
    rows_right,
    worst_errors,
)

LABELS = (
    "spam <b>",
    "ham & eggs",
    "$5 $x_{2}$",
    "😀",
    "a very long label that does not fit anywhere at all",
    "日本語",
)
NASTY = '<script>alert("x")</script> </td> & \' http://evil.example/a.png'


def noisy(n: int, size: int, *, seed: int = 0, skill: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets (n,) and probabilities (n, size) of a classifier that is mostly right."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, size, n)
    logits = rng.normal(size=(n, size))
    logits[np.arange(n), targets] += skill
    return targets, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def history(points: int) -> tuple[HistoryPoint, ...]:
    return tuple(
        HistoryPoint(
            step=10 * i,
            epoch=i / 4,
            examples=80 * i,
            train_loss=1.0 / i,
            val_loss=1.1 / i if i % 2 == 0 or points == 1 else None,
            val_metric=1 - 0.5 / i if i % 2 == 0 or points == 1 else None,
        )
        for i in range(1, points + 1)
    )


def make_facts(**changes: object) -> ReportFacts:
    """Facts of a made-up run; keywords replace fields."""
    targets, chances = noisy(120, len(LABELS))
    targets[:3] = (targets[:3] + 1) % len(LABELS)  # likely mislabelled
    chances[:3] = 0.98 * np.eye(len(LABELS))[(targets[:3] - 1) % len(LABELS)] + 0.02 / len(LABELS)
    texts = [f"text {i} {NASTY}" for i in range(120)]
    right = rows_right(targets, chances)
    majority = majority_baseline(targets, {"test": targets}, LABELS)["test"]
    counts = dict.fromkeys(LABELS, 20)
    fields: dict[str, object] = {
        "title": f"messages {NASTY}",
        "task": "one of 6 labels for each text",
        "base": BaseFacts("org/base", "sha256:abc", 22_000_000, "apache-2.0"),
        "data": DataFacts(
            f"messages.csv {NASTY}",
            (SplitFacts("train", 600, counts), SplitFacts("test", 120, counts)),
            (Choice("label column", "intent", "6 distinct values"),),
            (f"3 duplicates {NASTY}",),
            "sha256:def",
        ),
        "lora": LoraFacts(8, 16, ("all-linear",), 600_000, 22_600_000, 2_400_000, 36, {"dropout": "0.0"}),
        "speed": SpeedFacts(23.4, 18.0, 1.2, 230.0, 5200.0, 25.0),
        "validation": classification_metrics(*noisy(80, len(LABELS), seed=1), LABELS, bootstrap=50),
        "test": classification_metrics(targets, chances, LABELS, bootstrap=50),
        "baselines": (compared(majority, right),),
        "history": history(12),
        "mistakes": worst_errors(texts, targets, chances, LABELS),
        "mislabelled": likely_mislabelled(texts, targets, chances, LABELS),
        "mistakes_total": int((~right).sum()),
        "configuration": {"r": 8, "labels": list(LABELS), "note": NASTY},
        "exactness": ("fp32 throughout.",),
        "versions": {"veneer": "0.1.0"},
        "machine": "2 cores",
        "created": "22 November 2026",
        "use": ('veneer predict adapters/messages "hello"',),
    }
    return ReportFacts(**{**fields, **changes})  # type: ignore[arg-type]
