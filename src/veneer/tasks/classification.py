"""Classification: one label per text, or several.

The head reads one pooled state per text: the mean of its tokens, its first, or its last, as the base was trained.
The head itself is transformers' own, so that PEFT and transformers read what is saved.

Shapes: N or B texts, T tokens, C hidden size, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.engine.packing import Layout
from veneer.evaluation.metrics import classification_metrics, multilabel_metrics
from veneer.evaluation.scores import Metrics
from veneer.models.heads import Pooling, head_logits
from veneer.tasks.base import Answer

__all__ = ["ClassWeights", "Classification", "balanced_weights", "pool"]

ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class Classification:
    """The task's own facts.

    Attributes:
        labels: K names, in the order of the head's outputs.
        label_values: the labels as they stand in the user's data (numbers stay numbers); default: the names.
        multi_label: several labels per text (a sigmoid each) instead of one (softmax).
        pooling: which states of a text the head reads.
        class_weights: K factors of a text's loss by its label, or empty for none.
        label_smoothing: in [0, 1), Szegedy et al. 2016, section 7. For several labels: targets move towards 1/2.
        threshold: a label is given where its probability reaches this (several labels only).
    """

    labels: tuple[str, ...]
    pooling: Pooling
    multi_label: bool = False
    label_values: tuple[Any, ...] = ()
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    threshold: float = 0.5
    name: str = field(default="classification", init=False)

    def collate(self, targets: NDArray[Any]) -> Tensor:
        """(B,) int64 label numbers, or (B, K) float32 zeros and ones."""
        return torch.from_numpy(np.ascontiguousarray(targets, np.float32 if self.multi_label else np.int64))

    def reads(self, layout: Layout) -> Tensor | None:
        """(B,) one token of each text; None for the mean, which reads them all."""
        return {"first": layout.first, "last": layout.last, "mean": None}[self.pooling]

    def outputs(self, model: nn.Module, states: Tensor, layout: Layout) -> Tensor:
        """(B, K) logits, float32."""
        return head_logits(model, pool(states, layout, self.pooling), self.pooling)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over K labels, or the mean binary cross-entropy of each; a mean over the texts.

        With class weights too: divided by the number of texts and not by the sum of their weights, so that batches
        that are accumulated or shared among processes add up to what one batch gives.
        """
        weights = outputs.new_tensor(self.class_weights) if self.class_weights else None
        if not self.multi_label:
            summed = nn.functional.cross_entropy(
                outputs, targets, weight=weights, label_smoothing=self.label_smoothing, reduction="sum"
            )
            return summed / len(outputs)
        smooth = targets * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return nn.functional.binary_cross_entropy_with_logits(outputs, smooth, pos_weight=weights)

    def probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, K) softmax of each row, or sigmoid of each logit."""
        logits = outputs.astype(np.float64)
        if self.multi_label:
            return 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits / logits.sum(axis=1, keepdims=True)

    def answers(self, outputs: NDArray[np.float32]) -> list[Answer]:
        """One label with its probability, or all labels over the threshold; and each label's probability."""
        values = self.label_values or self.labels
        answers = []
        for row in self.probabilities(outputs).tolist():
            scores = {name: round(p, 6) for name, p in zip(self.labels, row, strict=True)}
            if self.multi_label:
                chosen = [value for value, p in zip(values, row, strict=True) if p >= self.threshold]
                answers.append({"labels": chosen, "probabilities": scores})
            else:
                best = max(range(len(row)), key=row.__getitem__)
                answers.append(
                    {
                        "label": values[best],
                        "probability": round(row[best], 6),
                        "probabilities": scores,
                    }
                )
        return answers

    def metrics(self, outputs: NDArray[np.float32], targets: NDArray[Any], *, seed: int = 0) -> Metrics:
        """Accuracy, macro-F1, calibration and the rest, with bootstrap intervals."""
        measure = multilabel_metrics if self.multi_label else classification_metrics
        return measure(targets, self.probabilities(outputs), self.labels, seed=seed)

    def score(self, outputs: NDArray[np.float32], targets: NDArray[Any]) -> tuple[str, float]:
        """Accuracy: the share of texts whose label, or whose every label, is right."""
        if not self.multi_label:
            return "accuracy", float((outputs.argmax(axis=1) == targets).mean())
        given = self.probabilities(outputs) >= self.threshold
        return "accuracy", float((given == targets.astype(bool)).all(axis=1).mean())

    def facts(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return {
            "labels": list(self.labels),
            "label_values": list(self.label_values),
            "multi_label": self.multi_label,
            "pooling": self.pooling,
            "class_weights": list(self.class_weights),
            "label_smoothing": self.label_smoothing,
            "threshold": self.threshold,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Classification:
        """The task that `facts()` describes."""
        lists = ("labels", "label_values", "class_weights")
        fields: dict[str, Any] = {
            key: tuple(value) if key in lists else value for key, value in facts.items()
        }
        return cls(**fields)


def pool(states: Tensor, layout: Layout, pooling: Pooling) -> Tensor:
    """The states that `Classification.reads` picks -> (B, C) one state per text, float32.

    "first" and "last" have picked them; "mean" takes the mean over the (T, C) states of each text's tokens (special
    tokens included), as sentence-transformers has it.
    """
    if pooling != "mean":
        return states.float()
    sums = torch.zeros(len(layout.lengths), states.shape[1], device=states.device)
    sums = sums.index_add(0, layout.text_of_token, states.float())
    return sums / layout.cu_seqlens.diff().unsqueeze(1)


def balanced_weights(targets: NDArray[Any], labels: Sequence[str], *, multi_label: bool) -> tuple[float, ...]:
    """Weights that give each label the same total weight: N / (K * count), as scikit-learn's "balanced".

    For several labels per text: negatives / positives of each label (`pos_weight`).
    """
    if multi_label:
        positives = np.maximum(targets.sum(axis=0), 1)
        return tuple(float(w) for w in (len(targets) - positives) / positives)
    counts = np.maximum(np.bincount(targets, minlength=len(labels)), 1)
    return tuple(float(w) for w in len(targets) / (len(labels) * counts))
