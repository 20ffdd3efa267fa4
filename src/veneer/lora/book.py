"""LoRA under the names of S. Raschka, "Build a Large Language Model (From Scratch)", appendix E.

    replace_linear_with_lora(model, rank=16, alpha=16)

A thin face: the product and its gradient are `lora_linear`'s. Two things differ from `attach`, both from the
book, and both are kept because a reproduction has to:

- The scaling is `alpha`, not `alpha / r` (`scaling="alpha"`). The paper's is there as `scaling="alpha/r"`
  (Hu et al. 2021, arXiv:2106.09685, section 4.1). The book's alpha is `lora_alpha = alpha * rank` of a LoraConfig.
- A is stored (in, rank) and drawn by `kaiming_uniform_` in that shape, whose "fan in" is then the rank: uniform
  in ±1/sqrt(rank), where PEFT's A (r, in) is in ±1/sqrt(in). For 768 inputs and rank 16 the book's A is 7 times
  larger.

This file must not know models, tasks or files.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.lora.autograd import lora_linear, low_rank_product

__all__ = ["LinearWithLoRA", "LoRALayer", "Scaling", "replace_linear_with_lora"]

Scaling = Literal["alpha", "alpha/r"]


class LoRALayer(nn.Module):
    """The low-rank change alone: `scaling * x A B`, with A (in_dim, rank) random and B (rank, out_dim) zero.

    LoRA's own matrices, as `attach` and PEFT store them, are the transposes: lora_A = A^T (rank, in_dim) and
    lora_B = B^T (out_dim, rank); `factors()` gives them.

    Raises:
        ConfigError: a rank below 1, or an alpha that is not above 0.
    """

    def __init__(
        self, in_dim: int, out_dim: int, rank: int, alpha: float, *, scaling: Scaling = "alpha"
    ) -> None:
        super().__init__()
        if rank < 1 or not alpha > 0:
            raise ConfigError(
                f"LoRALayer: got {rank=}, {alpha=}. Expected a rank from 1 and an alpha above 0."
            )
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.scaling = alpha if scaling == "alpha" else alpha / rank
        """The factor of A B."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """lora_A (rank, in_dim) and lora_B (out_dim, rank)."""
        return self.A.t(), self.B.t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        return low_rank_product(x, *self.factors(), self.scaling)


class LinearWithLoRA(nn.Module):
    """`linear(x) + lora(x)`, computed as one product; the linear layer stays as it is, inside."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, *, scaling: Scaling = "alpha") -> None:
        super().__init__()
        self.linear = linear
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, scaling=scaling)
        self.lora.to(linear.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return lora_linear(x, self.linear.weight, self.linear.bias, *self.lora.factors(), self.lora.scaling)


def replace_linear_with_lora(
    model: nn.Module, rank: int, alpha: float, *, scaling: Scaling = "alpha"
) -> None:
    """Wrap every nn.Linear inside `model`, the head too, in place. Freezing is yours to do, before.

    A layer that stands in two places is wrapped once. A's values come from torch's own generator, in the order
    of the modules.

    Raises:
        ConfigError: no nn.Linear inside (a Conv1D is none), or they are wrapped already.
    """
    if any(isinstance(module, LinearWithLoRA) for module in model.modules()):
        raise ConfigError("The model's linear layers are wrapped already. Wrap them once.")
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, nn.Linear)
    ]
    if not places:
        raise ConfigError(
            f"{type(model).__name__} has no nn.Linear inside: nothing to wrap. For transformers' Conv1D use "
            "veneer.lora.attach."
        )
    wrapped: dict[int, LinearWithLoRA] = {}
    for parent, name, child in places:
        if id(child) not in wrapped:
            wrapped[id(child)] = LinearWithLoRA(child, rank, alpha, scaling=scaling)
        setattr(parent, name, wrapped[id(child)])
