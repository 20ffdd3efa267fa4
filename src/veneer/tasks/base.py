"""What a task is: how examples become tokens, what the head reads, the loss, the answer, the metrics.

One file in this room holds one task: a `Task`, which knows its labels or its template, and a `Kind`, which makes it
and knows what can be said before there is one. The engine, the training loop, the evaluation and the adapter folder
know tasks by these two only; whoever adds a task writes that file and its tests, and names it in
`veneer.tasks.registry`.

Shapes: N examples, M features (an example has one, or several windows), B features of a batch, T tokens of a packed
batch, S places that the head reads, C hidden size, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.data.choices import Choice
from veneer.data.preview import PreviewText
from veneer.data.ragged import Ragged
from veneer.engine.packing import Layout, PackedBatch, pack
from veneer.evaluation.scores import Metrics
from veneer.models.forms import HeadSpec

__all__ = [
    "Answer",
    "Decided",
    "Encoded",
    "Input",
    "Outputs",
    "ScoreForm",
    "Targets",
    "Task",
    "TokenSequences",
    "dense",
    "packed_rows",
]

Answer = dict[str, Any]
"""What a person gets for one input: JSON values, e.g. {"label": "spam", "probability": 0.98, ...}."""

Input: TypeAlias = str | Mapping[str, str]
"""What is answered: a text, or texts by name, e.g. {"question": ..., "context": ...}."""

Targets: TypeAlias = NDArray[Any] | Ragged
"""Of M features: numbers (M,), rows (M, K), or as many for each feature as it has tokens (`Ragged`)."""

Outputs: TypeAlias = NDArray[np.float32] | Ragged
"""Of M features: (M, K), or for each feature (S, K) of the places that were read (`Ragged`)."""


class TokenSequences(Protocol):
    """Token ids of many texts, however they are stored."""

    @property
    def lengths(self) -> NDArray[Any]:
        """(M,) tokens of each text."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Encoded:
    """Examples as a model reads them; itself the token ids of M features.

    Attributes:
        ids: of M features, none of them empty.
        targets: of M features; None where they are not known.
        segments: token types of each feature; None: all of the first kind.
        example: (M,) int64, the example that each feature belongs to, rising; None: one each.
        details: what the task alone reads later (texts, offsets, given answers).
        cut: examples that lost tokens.
        longest: tokens of the longest example before any cut.
        full_lengths: (N,) int32 tokens of each example before any cut; None: nobody kept them.
        choices, warnings: what a person should know of how the examples were read.
    """

    ids: TokenSequences
    targets: Targets | None = None
    segments: TokenSequences | None = None
    example: NDArray[np.int64] | None = None
    details: Any = None
    cut: int = 0
    longest: int = 0
    full_lengths: NDArray[np.int32] | None = None
    choices: tuple[Choice, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        return self.ids[index]

    @property
    def lengths(self) -> NDArray[Any]:
        """(M,) tokens of each feature."""
        return self.ids.lengths

    @property
    def examples(self) -> int:
        """N."""
        if self.example is None:
            return len(self)
        return int(self.example[-1]) + 1 if len(self.example) else 0


def packed_rows(sequences: TokenSequences, rows: Sequence[int] | NDArray[np.int64]) -> PackedBatch:
    """These features end to end, with their token types where they have any."""
    segments = sequences.segments if isinstance(sequences, Encoded) else None
    types = None if segments is None else [segments[int(row)] for row in rows]
    return pack([sequences[int(row)] for row in rows], types)


@dataclass(frozen=True)
class ScoreForm:
    """The figure that decides which adapter is kept: its key, its name for people, and how it is shown."""

    key: str
    name: str
    percent: bool = True
    higher_is_better: bool = True


@dataclass(frozen=True)
class Decided:
    """The deciding figure of some outputs, higher always better (a loss comes with a minus), and its standard error."""

    value: float
    standard_error: float = 0.0

    @classmethod
    def share(cls, right: NDArray[np.bool_]) -> Self:
        """The share of (N,) that are right."""
        value = float(right.mean())
        return cls(value, math.sqrt(max(value * (1.0 - value), 0.0) / len(right)))


def dense(outputs: Outputs) -> NDArray[np.float32]:
    """(M, K): the outputs of a head that gives a row for each feature."""
    assert isinstance(outputs, np.ndarray)  # `Task.per` is "text"
    return outputs


class Task(Protocol):
    """One kind of question that an adapter answers.

    Rows are of the task's own kind, as its `Kind.prepare` reads them; only the task looks into them: `Any` here.
    """

    @property
    def name(self) -> str:
        """Its name in flags and in veneer.json."""
        ...

    @property
    def head(self) -> HeadSpec:
        """The head that it needs."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it answers: ("text",), ("text", "text_pair"), ("question", "context"), ..."""
        ...

    @property
    def per(self) -> Literal["text", "token"]:
        """Whether the head gives a row for each feature, or one for each place that it reads."""
        ...

    @property
    def deciding(self) -> ScoreForm:
        """How `score` is called and shown."""
        ...

    @property
    def answer_keys(self) -> tuple[str, ...]:
        """Keys of an answer that become columns in a file of answers."""
        ...

    def encode(self, rows: Any, tokenizer: Any, max_length: int) -> Encoded:
        """Labelled rows as features with targets.

        Raises:
            DataError: a row that nothing can be learnt from, named.
        """
        ...

    def encode_inputs(self, inputs: Sequence[Input], tokenizer: Any, max_length: int) -> Encoded:
        """Inputs as features. Raises `DataError` for one that does not have what the task reads."""
        ...

    def inputs_of(self, rows: Any, places: Sequence[int]) -> list[Input]:
        """The inputs of some examples, JSON values, as `encode_inputs` takes them."""
        ...

    def full_lengths(self, rows: Any, tokenizer: Any) -> NDArray[np.int32]:
        """(N,) tokens of each example before any cut."""
        ...

    def shown(self, rows: Any, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """An example as the model reads it."""
        ...

    def collate(self, targets: Targets) -> Tensor:
        """The targets of a batch, in packed order, as the loss takes them."""
        ...

    def units(self, targets: Targets) -> int:
        """How many terms the loss of these features is a mean of: texts, or labelled tokens."""
        ...

    def reads(self, layout: Layout, targets: Tensor | None = None) -> Tensor | None:
        """(S,) int64: the places in the packed row whose hidden states the head reads; None: all T.

        Args:
            layout: where each feature lies.
            targets: what `collate` made, where the targets are known.
        """
        ...

    def outputs(
        self, model: nn.Module, states: Tensor, layout: Layout, targets: Tensor | None = None
    ) -> Tensor:
        """(B, K) or (S, K) what the head says, in packed order, float32.

        Args:
            model: transformers' model with the adapter on it.
            states: (S, C) the last hidden states at `reads`, or (T, C).
            layout: where each feature lies.
            targets: what `collate` made, where the targets are known.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout) -> Tensor:
        """The scalar loss of a batch, mean over its `units`."""
        ...

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:
        """The same over many features."""
        ...

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """The deciding figure, quickly (no intervals)."""
        ...

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> Metrics:
        """How good the outputs are."""
        ...

    def answers(self, outputs: Outputs, encoded: Encoded) -> list[Answer]:
        """The outputs as answers for people, one for each example."""
        ...

    def facts(self) -> dict[str, Any]:
        """All that is needed to make this task again, as JSON values."""
        ...
