"""What tasks share whose head says something of each token that it reads: entities and answers.

This file knows heads; what their outputs mean is said in the task's own file.

Shapes: S places that are read, C hidden size, K outputs of the head.
"""

from __future__ import annotations

from torch import Tensor, nn

from veneer.engine.packing import Layout
from veneer.models.forms import token_logits

__all__ = ["TokenHead"]


class TokenHead:
    """The part of a task (see `veneer.tasks.base.Task`) that runs the base's own head on the states of its tokens."""

    def outputs(
        self,
        model: nn.Module,
        states: Tensor,
        layout: Layout,  # noqa: ARG002
        targets: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """(S, K) the head's logits for states (S, C), float32."""
        return token_logits(model, states.float()).float()
