"""Activations at the speed of memory.

On a CPU, PyTorch's tanh form of GELU in bf16 costs five times its exact form. But bf16 has 65,536 values only: value
and slope of any activation fit in two tables of 128 kB. The value is the fp32 result rounded
to bf16, as PyTorch's kernel gives it; the slope is rounded to bf16 as well, like the gradients around it. fp32 goes
through PyTorch's own kernels.

This file knows tensors only. T tokens, m width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["activation_of"]

Activation = Callable[[Tensor], Tensor]

_GELU_TANH = partial(nn.functional.gelu, approximate="tanh")  # Hendrycks & Gimpel 2016, section 2
_KNOWN: dict[str, Activation] = {
    "gelu": nn.functional.gelu,
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
}
_TABLED = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def activation_of(name: str) -> Activation | None:
    """The activation that transformers calls `name`, in its fastest form here; None for one that is not known."""
    if name not in _KNOWN:
        return None
    return partial(_by_table, name) if name in _TABLED else _KNOWN[name]


def _by_table(name: str, x: Tensor) -> Tensor:
    """(T, m) -> (T, m)."""
    if x.dtype is not torch.bfloat16 or x.device.type != "cpu" or not x.is_contiguous():
        return _KNOWN[name](x)
    return _TableActivation.apply(x, name)


@lru_cache
def _tables(name: str) -> tuple[Tensor, Tensor]:
    """(65536,) bf16 each: value and slope for every bf16 pattern, in the order of the patterns as signed numbers."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
        x.requires_grad_(True)
        value = _KNOWN[name](x)
        (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach().to(torch.bfloat16), slope.to(torch.bfloat16)


class _TableActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        index = x.view(-1).view(torch.int16).to(torch.int32).add_(32768)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(index)
            ctx.name = name
        return _tables(name)[0].index_select(0, index).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _tables(ctx.name)[1].index_select(0, index).view(grad.shape).mul_(grad), None
