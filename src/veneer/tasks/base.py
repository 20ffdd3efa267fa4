"""What a task is: how a text becomes tokens, what the head reads, the loss, the answer, the metrics.

One file in this room holds one task. The engine, the training loop, the evaluation and the adapter folder know tasks
by this protocol only; whoever adds a task writes that file and its tests, and names it in `veneer.tasks.registry`.

Shapes: N examples, B texts of a batch, T tokens of a packed batch, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.engine.packing import Layout
from veneer.evaluation.scores import Metrics

__all__ = ["Answer", "Encode", "Task", "TaskFromFacts", "TokenSequences"]

Answer = dict[str, Any]
"""What a person gets for one input: JSON values, e.g. {"label": "spam", "probability": 0.98, ...}."""


class TokenSequences(Protocol):
    """Token ids of many texts, however they are stored."""

    @property
    def lengths(self) -> NDArray[Any]:
        """(N,) tokens of each text."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


class Task(Protocol):
    """One kind of question that an adapter answers."""

    @property
    def name(self) -> str:
        """Its name in flags and in veneer.json."""
        ...

    def collate(self, targets: NDArray[Any]) -> Tensor:
        """The targets of a batch as the loss takes them."""
        ...

    def reads(self, layout: Layout) -> Tensor | None:
        """(S,) int64: the places in the packed row whose hidden states the head reads; None: all T."""
        ...

    def outputs(self, model: nn.Module, states: Tensor, layout: Layout) -> Tensor:
        """(B, K) what the head says of each text, in packed order, float32.

        Args:
            states: (S, C) the last hidden states at `reads`, or (T, C).
            layout: where each text lies.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of a batch, mean over its texts."""
        ...

    def answers(self, outputs: NDArray[np.float32]) -> list[Answer]:
        """(N, K) outputs as answers for people."""
        ...

    def metrics(self, outputs: NDArray[np.float32], targets: NDArray[Any], *, seed: int = 0) -> Metrics:
        """How good the outputs (N, K) are."""
        ...

    def score(self, outputs: NDArray[np.float32], targets: NDArray[Any]) -> tuple[str, float]:
        """Name and value of the deciding figure, quickly (no intervals); higher is better."""
        ...

    def facts(self) -> dict[str, Any]:
        """All that is needed to make this task again, as JSON values."""
        ...


Encode = Callable[[list[str]], list[list[int]]]


TaskFromFacts = Callable[[Mapping[str, Any]], Task]
