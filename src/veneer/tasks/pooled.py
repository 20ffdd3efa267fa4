"""What tasks share that read one pooled state of each text, or of each pair of texts, through a head on top.

This file knows texts, layouts and heads; what the head's outputs mean is said in the task's own file.

Shapes: N or B texts, C hidden size, K outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.engine.packing import Layout
from veneer.models.heads import Pooling, head_logits
from veneer.tasks.base import Encoded, Input, Targets
from veneer.tasks.pooling import pool
from veneer.tasks.texts import PAIR, TEXT, encode_given, encode_split, given_of, lengths_of

__all__ = ["PooledTexts"]


class PooledTexts:
    """The parts of a task (see `veneer.tasks.base.Task`) that follow from its pooling and from one text or two.

    Attributes:
        pooling: which states of a text the head reads.
        pair: two texts are read together.
    """

    pooling: Pooling
    pair: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """A text, or two."""
        return PAIR if self.pair else TEXT

    def encode(self, rows: Any, tokenizer: Any, max_length: int) -> Encoded:
        """The texts of a split, with their targets."""
        return encode_split(rows, tokenizer, max_length)

    def encode_inputs(self, inputs: Sequence[Input], tokenizer: Any, max_length: int) -> Encoded:
        """Texts or pairs of them."""
        return encode_given(inputs, self.inputs, tokenizer, max_length)

    def inputs_of(self, rows: Any, places: Sequence[int]) -> list[Input]:
        """The texts of some rows."""
        return given_of(rows, places)

    def full_lengths(self, rows: Any, tokenizer: Any) -> NDArray[np.int32]:
        """(N,) tokens before any cut."""
        return lengths_of(rows, tokenizer)

    def units(self, targets: Targets) -> int:
        """B."""
        return len(targets)

    def reads(self, layout: Layout, targets: Tensor | None = None) -> Tensor | None:  # noqa: ARG002
        """(B,) one token of each text; None for the mean, which reads them all."""
        return {"first": layout.first, "last": layout.last, "mean": None}[self.pooling]

    def outputs(
        self,
        model: nn.Module,
        states: Tensor,
        layout: Layout,
        targets: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """(B, K) what the head says of each text, float32."""
        return head_logits(model, pool(states, layout, self.pooling), self.pooling)
