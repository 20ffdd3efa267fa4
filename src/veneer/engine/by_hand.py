"""Parts of a block whose gradient is written by hand, as nodes of PyTorch's graph of their own.

Within a block that is one node (`veneer.engine.block_step`) they are called without a graph; here they get one.

This file knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["FromInput", "FromKept", "node_of_input", "node_of_kept"]


class FromInput(Protocol):
    """A function of one tensor whose gradient follows from the input."""

    def forward(self, x: Tensor, /) -> Tensor:
        """The value."""
        ...

    def backward(self, grad: Tensor, x: Tensor, /) -> Tensor:
        """The gradient of x from that of the value."""
        ...


class FromKept(Protocol):
    """A function of one tensor whose gradient follows from what it keeps."""

    def forward(self, x: Tensor, /) -> tuple[Tensor, list[Tensor]]:
        """The value, and what `backward` wants."""
        ...

    def backward(self, grad: Tensor, kept: Sequence[Tensor], /) -> Tensor:
        """The gradient of x from that of the value."""
        ...


def node_of_input(x: Tensor, part: FromInput) -> Tensor:
    """`part.forward(x)`, differentiable."""
    y: Tensor = _OfInput.apply(x, part)
    return y


def node_of_kept(x: Tensor, part: FromKept) -> Tensor:
    """`part.forward(x)` without what it keeps, differentiable."""
    y: Tensor = _OfKept.apply(x, part)
    return y


class _OfInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, part: FromInput) -> Tensor:
        ctx.save_for_backward(x)
        ctx.part = part
        return part.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.part.backward(grad, *ctx.saved_tensors), None


class _OfKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, part: FromKept) -> Tensor:
        y, kept = part.forward(x)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(*kept)
            ctx.part = part
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.part.backward(grad, ctx.saved_tensors), None
