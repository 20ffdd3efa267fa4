"""Regression: a number for each text, or for each pair of texts.

The head has one output and learns the numbers standardised by the training rows' mean and spread, so that the rate of
learning does not depend on their unit. When the adapter is stored, mean and spread are folded into the head, so that
its output is the number itself, also in transformers and PEFT. A head without a bias (the decoders') can't take the
mean: there it stays beside the head, and the model card's code adds it.

Shapes: N or B texts, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.adapter import AdapterFolder
from veneer.data.prepare import Prepared, prepare, task_of_labels
from veneer.data.preview import PreviewText
from veneer.data.rows import choose_columns
from veneer.data.sources import Source
from veneer.engine.packing import Layout
from veneer.errors import ConfigError, DataError
from veneer.evaluation.regression import regression_metrics
from veneer.evaluation.scores import Metrics
from veneer.lora import adapter_parameters
from veneer.models.forms import HeadSpec
from veneer.models.heads import Pooling
from veneer.naming import setting
from veneer.tasks import regression_pages as written
from veneer.tasks.base import Answer, Decided, Encoded, Outputs, ScoreForm, Targets, dense
from veneer.tasks.kind import Headline, Kind, Labelled, Making
from veneer.tasks.labelled import labelled_rows
from veneer.tasks.pooled import PooledTexts
from veneer.tasks.texts import (
    note_join,
    shown_text,
)

if TYPE_CHECKING:
    from veneer.models import Base

__all__ = ["KIND", "Regression"]

NUMBER = HeadSpec("sequence", ("number",), "regression")
_DIGITS = 6  # of an answer, that say something in float32


@dataclass(frozen=True)
class Regression(PooledTexts):
    """The task's own facts.

    Attributes:
        pooling: which states of a text the head reads.
        mean, scale: an answer is mean + scale * the head's output.
        pair: two texts are read together.
    """

    pooling: Pooling
    mean: float = 0.0
    scale: float = 1.0
    pair: bool = False
    name: str = field(default="regression", init=False)
    per: Literal["text", "token"] = field(default="text", init=False)
    head: HeadSpec = field(default=NUMBER, init=False)
    answer_keys: tuple[str, ...] = field(default=("value",), init=False)
    deciding: ScoreForm = field(default=ScoreForm("r2", "Variance explained"), init=False)

    def shown(self, rows: Any, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """A row token by token, with its number."""
        return shown_text(rows, place, (f"{rows.labels[place]:g}",), tokenizer, max_length)

    def collate(self, targets: Targets) -> Tensor:
        """(B,) float32 numbers, standardised."""
        assert isinstance(targets, np.ndarray)  # one for each text
        return torch.from_numpy(((targets - self.mean) / self.scale).astype(np.float32))

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout | None = None) -> Tensor:  # noqa: ARG002
        """Mean squared error of the standardised numbers, as transformers' own classes compute it."""
        return nn.functional.mse_loss(outputs.squeeze(1), targets)

    def values(self, outputs: Outputs) -> NDArray[np.float64]:
        """(N,) the numbers that are answered."""
        return dense(outputs)[:, 0].astype(np.float64) * self.scale + self.mean

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:
        """The loss of all texts together."""
        error = (self.values(outputs) - np.asarray(encoded.targets)) / self.scale
        return float(np.square(error).mean())

    def answers(self, outputs: Outputs, encoded: Encoded | None = None) -> list[Answer]:  # noqa: ARG002
        """The number, to six digits."""
        return [{"value": float(f"{value:.{_DIGITS}g}")} for value in self.values(outputs)]

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> Metrics:
        """Variance explained, correlations, errors, with bootstrap intervals."""
        return regression_metrics(np.asarray(encoded.targets), self.values(outputs), seed=seed)

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """The variance explained, and its standard error as that of the mean squared error."""
        given = np.asarray(encoded.targets, np.float64)
        squared = np.square(self.values(outputs) - given)
        variance = float(given.var())
        if variance == 0.0:
            return Decided(0.0)
        return Decided(
            1.0 - float(squared.mean()) / variance, float(squared.std()) / variance / np.sqrt(len(given))
        )

    def facts(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return {"pooling": self.pooling, "mean": self.mean, "scale": self.scale, "pair": self.pair}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Regression:
        """The task that `facts()` describes."""
        return cls(**facts)


def _seal_(task: Regression, model: nn.Module) -> Regression:
    """Fold mean and scale into the head's last layer, in place, and give the task that is left: mean 0, scale 1.

    Of a head without a bias the mean is left over; of one that is not trained, both are.
    """
    weights = dict(adapter_parameters(model))
    last = next((name for name in reversed(weights) if _is_last_weight(name, weights[name])), None)
    if last is None:
        return task
    bias = weights.get(last.removesuffix("weight") + "bias")
    with torch.no_grad():
        weights[last].mul_(task.scale)
        if bias is None:
            return replace(task, scale=1.0)
        bias.mul_(task.scale).add_(task.mean)
    return replace(task, mean=0.0, scale=1.0)


def _is_last_weight(name: str, weight: Tensor) -> bool:
    ends = ("score", "classifier", "classifier.out_proj")
    module = name.removesuffix(".weight")
    return name.endswith(".weight") and module.endswith(ends) and weight.shape[0] == 1 and weight.ndim == 2


def _claims(source: Source, decoder: bool | None) -> str | None:  # noqa: ARG001
    config = source.config
    try:
        loaded = source.loaded
        text, label = config.text_column or loaded.text_column, config.label_column or loaded.label_column
        columns, _ = choose_columns(loaded.table, text, label, config.text_pair_column)
    except DataError:  # whatever is wrong is said where the table is read in earnest
        return None
    choice, _ = task_of_labels(loaded.table, columns.label, config)
    return choice.reason if choice.value == "regression" else None


def _prepare(source: Source, options: Any) -> Prepared:  # noqa: ARG001
    config = source.config
    if config.multi_label or config.label_separator is not None:
        raise ConfigError(
            f"{setting('data.multi_label')} and {setting('data.label_separator')} are for labels; the task regression "
            f"gives one number for each text. Leave them out, or ask for {setting('task', 'classification')}."
        )
    return prepare(source.config, target="numbers", source=source)


def _head(prepared: Any, options: Any) -> HeadSpec:  # noqa: ARG001
    return NUMBER


def _make(made: Making) -> Regression:
    prepared: Prepared = made.prepared
    note_join(made)
    known = np.asarray(prepared.train.labels, np.float64)
    return Regression(
        pooling=made.base.pooling,
        mean=float(known.mean()),
        scale=float(known.std()) or 1.0,
        pair=prepared.columns.pair is not None,
    )


def _of_peft(folder: AdapterFolder, base: Base | None) -> Regression:  # noqa: ARG001
    return Regression(pooling="first" if base is None else base.pooling)


def _labelled(task: Regression, data: Mapping[str, Any], source: Source) -> Labelled:
    return labelled_rows(source, data, labels=(), pair=task.pair, number=True)


def _is_number(task: Any) -> bool:
    return (task.mean, task.scale) == (0.0, 1.0)


KIND = Kind(
    name="regression",
    says="a number for each text",
    form="sequence",
    claims=_claims,
    prepare=_prepare,
    head=_head,
    make=_make,
    from_facts=Regression.from_facts,
    of_peft=_of_peft,
    labelled=_labelled,
    card=written.card,
    findings=written.findings,
    inspect=written.inspected,
    headline=(
        Headline("r2", "variance explained"),
        Headline("pearson", "Pearson", percent=False),
        Headline("rmse", "RMSE", percent=False),
    ),
    uses=frozenset({"pooling"}),
    baselines=written.baselines,
    seal_=_seal_,
    as_peft=_is_number,
)
