"""The gate of a feed-forward layer (Shazeer 2020, section 2: SwiGLU, GeGLU): activation(gate) * up, with its gradient.

Gate and up lie side by side, as one product gives them. It stands where `veneer.engine.activations.Activation` stands
in a block without a gate. This file knows tensors only. Shapes: R rows, m width of the feed-forward layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veneer.engine.activations import Activation
from veneer.engine.by_hand import node_of_input

__all__ = ["Gated"]


@dataclass(frozen=True)
class Gated:
    """activation(gate) * up.

    Attributes:
        activation: of the gate.
    """

    activation: Activation
    after: ClassVar[None] = None  # it can't follow a product by itself

    def __call__(self, x: Tensor) -> Tensor:
        """(R, 2 m) gate and up side by side -> (R, m), differentiable."""
        return node_of_input(x, self)

    def forward(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """The value alone, without a graph; `in_place` as in `Activation.forward`."""
        gate, up = x.chunk(2, dim=1)
        return self.activation.forward(self._laid_out(gate), in_place=in_place).mul_(up)

    def backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of the input `x` (R, 2 m) from that of the output (R, m)."""
        gate, up = x.chunk(2, dim=1)
        gate = self._laid_out(gate)
        out = torch.empty_like(x)
        of_gate, of_up = out.chunk(2, dim=1)
        torch.mul(self.activation.forward(gate), grad, out=of_up)
        of_gate.copy_(self.activation.backward(grad * up, gate))
        return out

    def _laid_out(self, gate: Tensor) -> Tensor:
        """The gate as its activation is quickest with it."""
        return gate.contiguous() if self.activation.by_identity else gate
