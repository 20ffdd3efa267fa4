"""Frozen weights of linear layers held as int8: a quarter of fp32's memory, and not exact.

    W ~ scale ⊙ Q    Q = round(W / scale) in -127..127    scale = max|W| / 127, one number for each of the m outputs

Symmetric, to the nearest, so that no weight is off by more than half its row's scale (the weight-only form of Jacob et
al. 2018, arXiv:1712.05877, section 2.1, with the zero point at 0). Every int8 value is a bf16 value, so that products
are taken with Q itself and the scale multiplies the outputs (forward) or their gradient (backward): both go through the
same weight, and nothing is rounded but as in any product of that dtype.

This file must not know adapters, models or names.

T tokens, n inputs, m outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.errors import BaseError

__all__ = ["Int8Linear", "Int8Weight"]

_LEVELS = 127
_PIECE = 2**20  # weights that are in the dtype of the product at one time
_FEW = 16  # rows up to which reading the weights is what a product costs, and PyTorch's int8 product is taken


@dataclass(frozen=True)
class Int8Weight:
    """A frozen weight, and the products with it.

    Attributes:
        values: (m, n) int8, whatever the layer's own layout is.
        scale: (m,) float32.
    """

    values: Tensor
    scale: Tensor

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def of(cls, weight: Tensor) -> Int8Weight:
        """Round a weight (m, n) of any floating dtype.

        Raises:
            BaseError: a weight that is infinite or not a number.
        """
        scale = weight.abs().amax(dim=1).float() / _LEVELS
        if not bool(torch.isfinite(scale).all()):
            raise BaseError(
                "precision int8: a weight is infinite or not a number and has no nearest step. The base is damaged; "
                "download it again."
            )
        scale = torch.where(scale > 0, scale, 1.0)  # a row of zeros
        values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for part in _pieces(weight.shape[0], weight.shape[1]):
            steps = weight[part].float() / scale[part, None]
            values[part] = steps.round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8)
        return cls(values, scale)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(m, n) the weight that the products are taken with, as a new tensor."""
        return (self.values.float() * self.scale[:, None]).to(dtype)

    def outputs(self, columns: slice) -> Int8Weight:
        """The same for some of the outputs; nothing is copied."""
        return Int8Weight(self.values[columns], self.scale[columns])

    def product(self, x: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """x (T, n) -> (T, m) in its dtype: x W^T + bias (m,) + residual (T, m), without a graph."""
        few = x.shape[0] <= _FEW and x.dtype is torch.float32 and x.device.type == "cpu"
        y = self._packed_product(x) if few and _has_product() else self._pieced_product(x)
        y = y if bias is None else y.add_(bias)
        return y if residual is None else y.add_(residual)

    def input_gradient(self, grad: Tensor, beside: Tensor | None = None) -> Tensor:
        """(T, m) -> (T, n): the gradient of the input, plus `beside` (T, n), without a graph."""
        m, n = self.values.shape
        scaled = grad * self.scale.to(grad.dtype)
        found = torch.empty(grad.shape[0], n, dtype=grad.dtype, device=grad.device)
        for part in _pieces(n, m):
            found[:, part] = scaled @ self.values[:, part].to(grad.dtype)
        return found if beside is None else found.add_(beside)

    def _packed_product(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.values, self.scale)
        return found

    def _pieced_product(self, x: Tensor) -> Tensor:
        m, n = self.values.shape
        y = torch.empty(x.shape[0], m, dtype=x.dtype, device=x.device)
        for part in _pieces(m, n):
            y[:, part] = x @ self.values[part].to(x.dtype).t()
        return y.mul_(self.scale.to(x.dtype))


class Int8Linear(nn.Module):
    """Stands where an `nn.Linear` or a Conv1D stood, with its weight rounded to int8. Frozen; LoRA can be put on it."""

    def __init__(self, weight: Int8Weight, bias: nn.Parameter | None, *, transposed: bool) -> None:
        """`transposed`: it stands for a Conv1D, whose `weight` is (n, m)."""
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.transposed = transposed
        self.values = nn.Parameter(weight.values, requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", weight.scale)
        self.register_parameter("bias", bias)

    @property
    def held(self) -> Int8Weight:
        """The weight as it is held now."""
        return Int8Weight(self.values.detach(), self.scale)

    @property
    def weight(self) -> Tensor:
        """The weight in float32 and in the layer's own layout, made anew on each call: models read `layer.weight`."""
        dense = self.held.dense()
        return dense.t() if self.transposed else dense

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m) in the dtype of x (of autocast inside it)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = cast("Tensor | None", self.bias)
        y: Tensor = _Int8Product.apply(x.reshape(-1, self.in_features), self.held)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if bias is None else y + bias.to(y.dtype)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Int8Weight) -> Tensor:
        """x (T, n) -> (T, m); nothing is kept but the weight, which is frozen."""
        ctx.held = held
        return held.product(x, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """(T, m) -> (T, n), the gradient of x."""
        return ctx.held.input_gradient(grad), None


def _pieces(rows: int, width: int) -> Iterator[slice]:
    """`rows` in pieces of about `_PIECE` numbers, each row `width` wide."""
    step = max(1, _PIECE // max(1, width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@lru_cache(maxsize=1)
def _has_product() -> bool:
    """Whether this PyTorch multiplies fp32 by int8 on a CPU and gives the plain product: tried on a small one."""
    if not hasattr(torch.ops.aten, "_weight_int8pack_mm"):
        return False
    with torch.inference_mode():
        x = torch.arange(192, dtype=torch.float32).reshape(6, 32).sin()
        held = Int8Weight.of(torch.arange(1024, dtype=torch.float32).reshape(32, 32).cos())
        try:
            found = held._packed_product(x)
        except (RuntimeError, NotImplementedError):
            return False
        return torch.allclose(found, x @ held.dense().t(), rtol=1e-5, atol=1e-5)
