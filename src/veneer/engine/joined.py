"""A group of frozen linear layers with LoRA beside them at one moment: its product, forward and backward by hand.

The adapters are A's under each other and B's on a diagonal for PyTorch's products, or the factors themselves for the
compiled kernels (`veneer.engine.native`).

This file knows tensors; which layers they come from is `veneer.engine.linears`'.

Shapes: T tokens, n inputs, M outputs of the group, r rank of a layer's adapter, R of the group's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from veneer.engine.activations import Activation
from veneer.engine.frozen import FrozenLinear
from veneer.engine.gated import Gated
from veneer.engine.native import NO_ADAPTERS, Adapters, Kernels, Part, kernels_for
from veneer.lora.int8 import Int8Weight

__all__ = ["Joined", "Place", "Shape", "joined_of"]

Place = tuple[int, int, float]
"""First output, number of outputs and scaling of one adapter in a group."""

Shape = tuple[tuple[Place, ...], tuple[int, ...]]
"""The parts, and their ranks."""


@dataclass(frozen=True)
class Joined:
    """A group's product at one moment: forward and backward without a graph.

    Attributes:
        frozen: the weights W (M, n).
        bias: (M,) or None.
        A, B: (R, n) and (M, R) of the adapters, B scaled, in the dtype of the product; None without any.
        shape: which adapter stands where.
        factors: the adapters' own A_1, B_1, A_2, ...
        kernels: that compute the adapters, from `adapters`, in place of A and B; None: A and B do.
        adapters: the factors and where they stand.
    """

    frozen: FrozenLinear | Int8Weight
    bias: Tensor | None
    A: Tensor | None
    B: Tensor | None
    shape: Shape
    factors: tuple[Tensor, ...]
    kernels: Kernels | None = None
    adapters: Adapters = NO_ADAPTERS

    @property
    def trained(self) -> bool:
        """Whether any factor wants a gradient."""
        return any(factor.requires_grad for factor in self.factors)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(T, n) -> (T, M) x W^T + (x A^T) B^T + bias + residual, and x A^T (T, R) to be kept."""
        if self.kernels is not None:
            return self._forward_by(self.kernels, x.contiguous(), residual)
        y = self.frozen.product(x, self.bias, residual)
        if self.A is None or self.B is None:
            return y, None
        h = torch.mm(x, self.A.t())
        y.addmm_(h, self.B.t())
        return y, h

    def activated(self, x: Tensor, activation: Activation | Gated) -> Tensor:
        """(T, n) -> (T, M), with a gate half of it: an activation of `forward`, whose input nobody wants later."""
        if not self.shape[0] and activation.after is not None and isinstance(self.frozen, FrozenLinear):
            found = self.frozen.activated(x, self.bias, activation.after)
            if found is not None:
                return found
        return activation.forward(self.forward(x)[0], in_place=True)

    def backward(
        self, grad: Tensor, x: Tensor | None, h: Tensor | None, *, need_x: bool, beside: Tensor | None = None
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of the input (T, n), plus `beside` (T, n) where one is given, and of `factors`.

        Args:
            grad: (T, M).
            x, h: the input, and what `forward` gave with it; None: no factor wants a gradient.
            need_x: whether the input's is wanted.
            beside: what else flows into the input's gradient.
        """
        none: list[Tensor | None] = [None] * len(self.factors)
        if self.kernels is not None:
            x = None if h is None or x is None else x.contiguous()
            grad_x, found = self._backward_by(self.kernels, grad.contiguous(), x, h, need_x, beside)
            return grad_x, [*found] or none
        g: Tensor | None = None
        if self.B is not None and (need_x or h is not None):
            g = torch.mm(grad, self.B)  # (T, R), scaled
        grad_x = None
        if need_x:
            grad_x = self.frozen.input_gradient(grad, beside)
            if g is not None and self.A is not None:
                grad_x.addmm_(g, self.A)
        if h is None or x is None or g is None:
            return grad_x, none
        dtypes = [factor.dtype for factor in self.factors]
        return grad_x, _of_factors(torch.mm(g.t(), x), torch.mm(grad.t(), h), self.shape, dtypes)

    def _forward_by(
        self, compiled: Kernels, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` by the kernels: as one product where they have one with this weight, else beside PyTorch's."""
        if isinstance(self.frozen, FrozenLinear):
            found = self.frozen.adapted(x, self.bias, residual, self.adapters)
            if found is not None:
                return found
        y = self.frozen.product(x, self.bias, residual)
        return y, compiled.lora_forward(x, y, self.adapters)

    def _backward_by(
        self,
        compiled: Kernels,
        grad: Tensor,
        x: Tensor | None,
        h: Tensor | None,
        need_x: bool,
        beside: Tensor | None,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """`backward` by the kernels, as `_forward_by`; without an `x` no factor's gradient."""
        if need_x and isinstance(self.frozen, FrozenLinear):
            found = self.frozen.adapted_gradient(grad, beside, x, h, self.adapters)
            if found is not None:
                return found
        grad_x = self.frozen.input_gradient(grad, beside) if need_x else None
        if grad_x is None and x is None:
            return None, []
        return grad_x, compiled.lora_backward(grad, x, h, grad_x, self.adapters)


def joined_of(
    frozen: FrozenLinear | Int8Weight,
    bias: Tensor | None,
    factors: Sequence[Tensor],
    places: Sequence[Place],
    outputs: int,
    dtype: torch.dtype,
) -> Joined:
    """The product of a group with so many outputs in `dtype`, and of the adapters A_1, B_1, ... at their places."""
    shape = tuple(places), tuple(factor.shape[0] for factor in factors[::2])
    compiled = _compiled(factors, dtype, frozen)
    if compiled is None:
        A, B = _side_by_side(factors, places, outputs, dtype) if places else (None, None)
        return Joined(frozen, bias, A, B, shape, tuple(factors))
    pairs = zip(factors[::2], factors[1::2], places, strict=True)
    adapters = Adapters([Part(A.detach(), B.detach(), first, scaling) for A, B, (first, _, scaling) in pairs])
    return Joined(frozen, bias, None, None, shape, tuple(factors), compiled, adapters)


def _compiled(
    factors: Sequence[Tensor], dtype: torch.dtype, frozen: FrozenLinear | Int8Weight
) -> Kernels | None:
    """The kernels for these factors: in bf16, where PyTorch's narrow products cost more than they compute, and where
    they have the frozen product too.
    """
    if not factors or any(f.dtype is not torch.float32 for f in factors):
        return None
    if dtype is torch.bfloat16:
        return kernels_for(*factors)
    if not isinstance(frozen, FrozenLinear) or frozen.weight.dtype is not dtype:
        return None
    return frozen.compiled() and kernels_for(*factors)


@torch.no_grad()
def _side_by_side(
    factors: Sequence[Tensor], parts: Sequence[Place], outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """All A's under each other (R, n), and all scaled B's on the diagonal of (M, R), in `dtype`.

    Copies, made for each call: an optimiser may change the factors without a trace (PyTorch's fused ones do).
    """
    if len(parts) == 1 and parts[0][1] == outputs:
        return factors[0].to(dtype, copy=True), (factors[1] * parts[0][2]).to(dtype)
    A = torch.cat(list(factors[::2])).to(dtype)
    B = torch.zeros(outputs, A.shape[0], dtype=dtype, device=A.device)
    at = 0
    for (start, size, scaling), B_i in zip(parts, factors[1::2], strict=True):
        r = B_i.shape[1]
        torch.mul(B_i, scaling, out=B[start : start + size, at : at + r])
        at += r
    return A, B


def _of_factors(
    of_A: Tensor, of_B: Tensor, shape: Shape, dtypes: Sequence[torch.dtype]
) -> list[Tensor | None]:
    """The gradients of A (R, n) and of B (M, R), as those of each adapter's factors: A_1, B_1, A_2, ..."""
    found: list[Tensor | None] = []
    of_A, of_B = of_A.to(dtypes[0]), of_B.to(dtypes[0])
    at = 0
    for (start, size, scaling), r in zip(shape[0], shape[1], strict=True):
        found += [of_A[at : at + r], of_B[start : start + size, at : at + r] * scaling]
        at += r
    return [g.to(dtype) for g, dtype in zip(found, dtypes, strict=True) if g is not None]
