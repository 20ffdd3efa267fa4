"""A task that Veneer does not have, in one file: shares, a number between 0 and 1 for each text.

What stands here is all that a new task with a head of a known form needs; `test_fifth_task` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.data.prepare import prepare
from veneer.data.preview import PreviewText
from veneer.data.sources import Source
from veneer.engine.packing import Layout
from veneer.evaluation.scores import Score, Scores
from veneer.models.forms import HeadSpec
from veneer.models.heads import Pooling
from veneer.tasks.base import Answer, Decided, Encoded, Outputs, ScoreForm, Targets, dense
from veneer.tasks.kind import Card, Headline, Kind, Labelled
from veneer.tasks.labelled import labelled_rows
from veneer.tasks.pooled import PooledTexts
from veneer.tasks.texts import shown_text

__all__ = ["KIND"]

ERROR = ScoreForm("error", "Error", percent=False, higher_is_better=False)


@dataclass(frozen=True)
class Shares(PooledTexts):
    """A share for each text: the sigmoid of one output."""

    pooling: Pooling
    pair: bool = False
    name: str = field(default="shares", init=False)
    per: Literal["text", "token"] = field(default="text", init=False)
    head: HeadSpec = field(default=HeadSpec("sequence", ("share",)), init=False)
    answer_keys: tuple[str, ...] = field(default=("share",), init=False)
    deciding: ScoreForm = field(default=ERROR, init=False)

    def shown(self, rows: Any, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """A row token by token."""
        return shown_text(rows, place, (f"{rows.labels[place]:g}",), tokenizer, max_length)

    def collate(self, targets: Targets) -> Tensor:
        """(B,) float32."""
        return torch.from_numpy(np.asarray(targets, np.float32))

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout | None = None) -> Tensor:  # noqa: ARG002
        """Binary cross-entropy with the share."""
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)

    def values(self, outputs: Outputs) -> NDArray[np.float64]:
        """(N,) shares."""
        found: NDArray[np.float64] = 1 / (1 + np.exp(-dense(outputs)[:, 0].astype(np.float64)))
        return found

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:
        """The loss of all texts."""
        return float(self.loss(torch.from_numpy(dense(outputs)), self.collate(encoded.targets)))  # type: ignore[arg-type]

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """Minus the mean error."""
        return Decided(-float(np.abs(self.values(outputs) - np.asarray(encoded.targets)).mean()))

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> Scores:  # noqa: ARG002
        """The mean error."""
        error = -self.score(outputs, encoded).value
        return Scores(
            encoded.examples, (Score("error", "Error", error, percent=False, higher_is_better=False),)
        )

    def answers(self, outputs: Outputs, encoded: Encoded | None = None) -> list[Answer]:  # noqa: ARG002
        """A share for each text."""
        return [{"share": round(float(value), 6)} for value in self.values(outputs)]

    def facts(self) -> dict[str, Any]:
        """The fields."""
        return {"pooling": self.pooling, "pair": self.pair}


def _claims(source: Source, decoder: bool | None) -> str | None:  # noqa: ARG001
    return "'share' holds shares" if "share" in source.columns else None


def _labelled(task: Shares, data: Mapping[str, Any], source: Source) -> Labelled:
    return labelled_rows(source, data, labels=(), pair=task.pair, number=True)


KIND = Kind(
    name="shares",
    says="a number between 0 and 1 for each text",
    form="sequence",
    claims=_claims,
    prepare=lambda source, _: prepare(source.config, target="numbers", source=source),
    head=lambda _, __: HeadSpec("sequence", ("share",)),
    make=lambda made: Shares(made.base.pooling),
    from_facts=lambda facts: Shares(**facts),
    labelled=_labelled,
    card=lambda _: Card("a share for each text", "text-classification", "..."),
    headline=(Headline("error", "error", percent=False),),
)
