"""Activations at the speed of memory, with their gradients by hand.

On one or two threads PyTorch's tanh form of GELU costs twice a table: bf16 has 65,536 values only, so value and slope
of any activation fit in two tables of 128 kB. The value is the fp32 result rounded to bf16, as PyTorch's kernel gives
it; the slope is rounded to bf16 as well, like the gradients around it. All else goes through PyTorch's own kernels.

This file knows tensors only. T tokens, m width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Activation", "activation_of"]

_aten: Any = torch.ops.aten
_GELU_TANH = partial(nn.functional.gelu, approximate="tanh")  # Hendrycks & Gimpel 2016, section 2


@dataclass(frozen=True)
class Activation:
    """An activation, and the gradient of its input from that of its output and the input itself.

    Attributes:
        value: (T, m) -> (T, m).
        gradient: of the output (T, m), and the input (T, m) -> of the input (T, m).
        tabled: whether bf16 on a CPU goes by table.
    """

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    tabled: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """(T, m) -> (T, m), differentiable."""
        return _Activated.apply(x, self) if self._by_table(x) else self.value(x)

    def forward(self, x: Tensor) -> Tensor:
        """The value alone, without a graph."""
        return _looked_up(_tables(self)[0], x) if self._by_table(x) else self.value(x)

    def backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of the input `x`."""
        return _looked_up(_tables(self)[1], x).mul_(grad) if self._by_table(x) else self.gradient(grad, x)

    def _by_table(self, x: Tensor) -> bool:
        return self.tabled and x.dtype is torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous()


_TANH = Activation(_GELU_TANH, partial(_aten.gelu_backward, approximate="tanh"), tabled=True)
_SILU = Activation(nn.functional.silu, _aten.silu_backward)
_KNOWN: dict[str, Activation] = {
    "gelu": Activation(nn.functional.gelu, _aten.gelu_backward),
    "gelu_new": _TANH,
    "gelu_pytorch_tanh": _TANH,
    "gelu_fast": _TANH,
    "relu": Activation(nn.functional.relu, partial(_aten.threshold_backward, threshold=0)),
    "silu": _SILU,
    "swish": _SILU,
}


def activation_of(name: str) -> Activation | None:
    """The activation that transformers calls `name`, in its fastest form here; None for one that is not known."""
    return _KNOWN.get(name)


def _looked_up(table: Tensor, x: Tensor) -> Tensor:
    """The entry of a table for each value of a contiguous bf16 x."""
    index = x.view(-1).view(torch.int16).to(torch.int32).add_(32768)
    return table.index_select(0, index).view(x.shape)


@lru_cache
def _tables(activation: Activation) -> tuple[Tensor, Tensor]:
    """(65536,) bf16 each: value and slope for every bf16 pattern, in the order of the patterns as signed numbers."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
        x.requires_grad_(True)
        value = activation.value(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach().to(torch.bfloat16), slope.to(torch.bfloat16)


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return activation.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.activation.backward(grad, *ctx.saved_tensors), None
