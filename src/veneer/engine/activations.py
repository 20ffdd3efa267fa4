"""Activations at the speed of memory, with their gradients by hand.

PyTorch's tanh form of GELU takes three times as long as oneDNN's, which is to be had as what follows a product: after
the product that makes its input, where nobody wants that input later, or after a product with the identity, which
changes nothing (docs/experiments.md). The gradients, and all else, go through PyTorch's own kernels.

This file knows tensors only. T tokens, m width of the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.by_hand import node_of_input
from veneer.engine.frozen import After, followed_product, has_blocks
from veneer.engine.native import kernels_for

__all__ = ["Activation", "activation_of"]

_aten: Any = torch.ops.aten
_WIDTH = 64  # of the identity: enough to keep the products busy, small enough that they cost nothing
_GELU_TANH = partial(nn.functional.gelu, approximate="tanh")  # Hendrycks & Gimpel 2016, section 2


@dataclass(frozen=True)
class Activation:
    """An activation, and the gradient of its input from that of its output and the input itself.

    Attributes:
        value: (T, m) -> (T, m).
        gradient: of the output (T, m), and the input (T, m) -> of the input (T, m).
        after: what oneDNN calls it, where it can follow a product.
        by_identity: whether bf16 on a CPU goes through a product with the identity.
        kernel: what `veneer.engine.native` calls it.
    """

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    after: After | None = None
    by_identity: bool = False
    kernel: str | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(T, m) -> (T, m), differentiable."""
        by_hand = (self.kernel is not None and kernels_for(x) is not None) or self._quicker(x)
        return node_of_input(x, self) if by_hand else self.value(x)

    def forward(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """The value alone, without a graph; `in_place`: nobody wants x later, and the value may take its place."""
        if self.kernel is not None and (compiled := kernels_for(x)) is not None:
            return compiled.value(self.kernel, x, in_place=in_place)
        if not self._quicker(x):
            return self.value(x)
        assert self.after is not None
        found = followed_product(x.view(-1, _WIDTH), _identity(), None, self.after)
        return found.view(x.shape)

    def backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of the input `x`."""
        if (
            self.kernel is not None
            and grad.dtype is x.dtype
            and (compiled := kernels_for(grad, x)) is not None
        ):
            return compiled.gradient(self.kernel, grad, x)
        return self.gradient(grad, x)

    def _quicker(self, x: Tensor) -> bool:
        return (
            self.by_identity
            and x.dtype is torch.bfloat16
            and x.device.type == "cpu"
            and x.is_contiguous()
            and x.numel() % _WIDTH == 0
            and has_blocks()
        )


_TANH = Activation(
    _GELU_TANH,
    partial(_aten.gelu_backward, approximate="tanh"),
    ("gelu", "tanh"),
    by_identity=True,
    kernel="gelu_tanh",
)
_SILU = Activation(nn.functional.silu, _aten.silu_backward, kernel="silu")
_KNOWN: dict[str, Activation] = {
    "gelu": Activation(nn.functional.gelu, _aten.gelu_backward, ("gelu", "none"), kernel="gelu"),
    "gelu_new": _TANH,
    "gelu_pytorch_tanh": _TANH,
    "gelu_fast": _TANH,
    "relu": Activation(nn.functional.relu, partial(_aten.threshold_backward, threshold=0), ("relu", "")),
    "silu": _SILU,
    "swish": _SILU,
}


def activation_of(name: str) -> Activation | None:
    """The activation that transformers calls `name`, in its fastest form here; None for one that is not known."""
    return _KNOWN.get(name)


@lru_cache(maxsize=1)
def _identity() -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(_WIDTH, dtype=torch.bfloat16)
