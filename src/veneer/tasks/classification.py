"""Classification: one label per text, or several.

The head reads one pooled state per text: the mean of its tokens, its first, or its last, as the base was trained.
The head itself is transformers' own, so that PEFT and transformers read what is saved.

Shapes: N or B texts, T tokens, C hidden size, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.adapter import AdapterFolder
from veneer.data.prepare import Prepared, prepare
from veneer.data.preview import PreviewText
from veneer.data.sources import Source
from veneer.engine.packing import Layout
from veneer.evaluation.metrics import classification_metrics, multilabel_metrics
from veneer.evaluation.scores import Metrics
from veneer.models.forms import HeadSpec, sequence_head
from veneer.models.heads import Pooling
from veneer.tasks import classification_pages as written
from veneer.tasks.base import Answer, Decided, Encoded, Outputs, ScoreForm, Targets, dense
from veneer.tasks.kind import Headline, Kind, Labelled, Making
from veneer.tasks.labelled import labelled_rows
from veneer.tasks.pooled import PooledTexts
from veneer.tasks.pooling import head_outputs, pool
from veneer.tasks.texts import (
    note_join,
    shown_text,
)

if TYPE_CHECKING:
    from veneer.models import Base

__all__ = ["KIND", "ClassWeights", "Classification", "balanced_weights", "pool"]

ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class Classification(PooledTexts):
    """The task's own facts.

    Attributes:
        labels: K names, in the order of the head's outputs.
        label_values: the labels as they stand in the user's data (numbers stay numbers); default: the names.
        multi_label: several labels per text (a sigmoid each) instead of one (softmax).
        pooling: which states of a text the head reads.
        class_weights: K factors of a text's loss by its label, or empty for none.
        label_smoothing: in [0, 1), Szegedy et al. 2016, section 7. For several labels: targets move towards 1/2.
        threshold: a label is given where its probability reaches this (several labels only).
        pair: two texts are read together.
    """

    labels: tuple[str, ...]
    pooling: Pooling
    multi_label: bool = False
    label_values: tuple[Any, ...] = ()
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    threshold: float = 0.5
    pair: bool = False
    name: str = field(default="classification", init=False)

    per: Literal["text", "token"] = field(default="text", init=False)
    deciding: ScoreForm = field(default=ScoreForm("accuracy", "Accuracy"), init=False)

    @property
    def head(self) -> HeadSpec:
        """K outputs a text."""
        return sequence_head(self.labels, multi_label=self.multi_label)

    @property
    def answer_keys(self) -> tuple[str, ...]:
        """Of an answer; "probabilities" is no column of a file."""
        return ("labels",) if self.multi_label else ("label", "probability")

    def shown(self, rows: Any, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """A row token by token, with its labels."""
        numbers = [int(rows.labels[place])] if rows.labels.ndim == 1 else np.flatnonzero(rows.labels[place])
        labels = tuple(self.labels[number] for number in numbers)
        return shown_text(rows, place, labels, tokenizer, max_length)

    def collate(self, targets: Targets) -> Tensor:
        """(B,) int64 label numbers, or (B, K) float32 zeros and ones."""
        return torch.from_numpy(np.ascontiguousarray(targets, np.float32 if self.multi_label else np.int64))

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout | None = None) -> Tensor:  # noqa: ARG002
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

    def answers(self, outputs: Outputs, encoded: Encoded | None = None) -> list[Answer]:  # noqa: ARG002
        """One label with its probability, or all labels over the threshold; and each label's probability."""
        values = self.label_values or self.labels
        answers = []
        for row in self.probabilities(dense(outputs)).tolist():
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

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:
        """The loss of all texts together."""
        assert encoded.targets is not None  # labelled rows were encoded
        with torch.no_grad():
            return float(self.loss(torch.from_numpy(dense(outputs)), self.collate(encoded.targets)))

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> Metrics:
        """Accuracy, macro-F1, calibration and the rest, with bootstrap intervals."""
        measure = multilabel_metrics if self.multi_label else classification_metrics
        targets = np.asarray(encoded.targets)
        return measure(targets, self.probabilities(dense(outputs)), self.labels, seed=seed)

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """Accuracy: the share of texts whose label, or whose every label, is right."""
        logits, targets = dense(outputs), np.asarray(encoded.targets)
        if self.multi_label:
            given = self.probabilities(logits) >= self.threshold
            return Decided.share((given == targets.astype(bool)).all(axis=1))
        return Decided.share(logits.argmax(axis=1) == targets)

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
            "pair": self.pair,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Classification:
        """The task that `facts()` describes."""
        lists = ("labels", "label_values", "class_weights")
        fields: dict[str, Any] = {
            key: tuple(value) if key in lists else value for key, value in facts.items()
        }
        return cls(**fields)


def balanced_weights(targets: NDArray[Any], labels: Sequence[str], *, multi_label: bool) -> tuple[float, ...]:
    """Weights that give each label the same total weight: N / (K * count), as scikit-learn's "balanced".

    For several labels per text: negatives / positives of each label (`pos_weight`).
    """
    if multi_label:
        positives = np.maximum(targets.sum(axis=0), 1)
        return tuple(float(w) for w in (len(targets) - positives) / positives)
    counts = np.maximum(np.bincount(targets, minlength=len(labels)), 1)
    return tuple(float(w) for w in len(targets) / (len(labels) * counts))


def _claims(source: Source, decoder: bool | None) -> str | None:  # noqa: ARG001
    return "texts with labels"  # whatever nobody else claims; `prepare` says what is missing


def _prepare(source: Source, options: Any) -> Prepared:  # noqa: ARG001
    return prepare(source.config, target="labels", source=source)


def _head(prepared: Prepared, options: Any) -> HeadSpec:  # noqa: ARG001
    return sequence_head(prepared.labels, multi_label=prepared.multi_label)


def _make(made: Making) -> Classification:
    prepared: Prepared = made.prepared
    note_join(made)
    weights: tuple[float, ...] = ()
    if made.settings.class_weights == "balanced":
        targets = np.asarray(prepared.train.labels)
        weights = balanced_weights(targets, prepared.labels, multi_label=prepared.multi_label)
    return Classification(
        labels=prepared.labels,
        label_values=tuple(prepared.label_set.value(i) for i in range(len(prepared.labels))),
        multi_label=prepared.multi_label,
        pooling=made.base.pooling,
        class_weights=weights,
        label_smoothing=made.settings.label_smoothing,
        pair=prepared.columns.pair is not None,
    )


def _of_peft(folder: AdapterFolder, base: Base | None) -> Classification:
    labels = tuple(f"LABEL_{i}" for i in range(head_outputs(folder)))
    return Classification(labels=labels, pooling="first" if base is None else base.pooling)


def _labelled(task: Classification, data: Mapping[str, Any], source: Source) -> Labelled:
    return labelled_rows(source, data, labels=task.labels, multi_label=task.multi_label, pair=task.pair)


KIND = Kind(
    name="classification",
    says="one label for each text, or several",
    form="sequence",
    claims=_claims,
    prepare=_prepare,
    head=_head,
    make=_make,
    from_facts=Classification.from_facts,
    of_peft=_of_peft,
    labelled=_labelled,
    card=written.card,
    findings=written.findings,
    inspect=written.inspected,
    headline=(Headline("accuracy", "accuracy"), Headline("macro_f1", "macro-F1")),
    uses=frozenset({"pooling", "class_weights", "label_smoothing"}),
    baselines=written.baselines,
)
