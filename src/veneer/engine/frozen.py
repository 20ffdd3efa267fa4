"""A frozen weight in the layout that the machine's product wants.

oneDNN, which multiplies for PyTorch on CPUs, puts a bf16 weight into blocks before every product; for the few hundred
tokens of a batch that costs as much as the product. A frozen weight never changes, so it is put into blocks once, for
the product forward and for the gradient of the input, each when it is first needed. The compiled kernels
(`veneer.engine.native`) have products of their own, with the adapters in them and a layout of their own: in bf16 for
processors with a matrix unit, in fp32 for those with AVX2 and nothing above it. Where there is neither (a GPU, another
build of PyTorch) the plain products are taken.

This file knows tensors only. Shapes: T tokens, n inputs, m outputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from veneer.engine.allocation import let_go_of_file_pages
from veneer.engine.native import NO_ADAPTERS, Adapters, Kernels, kernels

__all__ = ["After", "FrozenLinear", "followed_product", "has_blocks", "let_go", "takes_any_rows"]

After = tuple[str, str]
"""An activation as oneDNN names it, and its form; ("none", "") is none."""

_NONE: After = ("none", "")

_ROWS = 256  # tokens that the blocks are laid out for; other numbers are computed as exactly

# Products with many rows and no more outputs than inputs are left to one thread by oneDNN's rule for dividing them;
# in pieces they are not. Measured, see docs/experiments.md.
_PIECE = 384
_PIECES_UP_TO = 1536


class FrozenLinear:
    """Products with a frozen W.

    Args:
        weight: (m, n), or (n, m) if `transposed` (Conv1D's layout); never changed afterwards.
        transposed: which of the two it is.
        keep: whether it is used often enough to be put into blocks.
    """

    def __init__(self, weight: Tensor, *, transposed: bool, keep: bool = True) -> None:
        self.weight = weight.detach()
        self.transposed = transposed
        self._forward: Tensor | None = None
        self._backward: Tensor | None = None
        self._tiles: dict[bool, Tensor] = {}  # of W, and of W^T: False and True
        self._kept = keep and weight.device.type == "cpu"
        self._blocked = self._kept and weight.dtype is torch.bfloat16 and has_blocks()

    def product(self, x: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """x (T, n) -> (T, m): x W^T + bias (m,) + residual (T, m)."""
        found = self.adapted(x, bias, residual)
        if found is not None:
            return found[0]
        if self._blocked:
            return _blocked_product(x, self._for_forward(), bias, residual)
        W_t = self.weight if self.transposed else self.weight.t()  # (n, m)
        if residual is None:
            return torch.mm(x, W_t) if bias is None else torch.addmm(bias, x, W_t)
        y = torch.addmm(residual, x, W_t)
        return y if bias is None else y.add_(bias)

    def activated(self, x: Tensor, bias: Tensor | None, after: After) -> Tensor | None:
        """x (T, n) -> (T, m): an activation of x W^T + bias (m,), rounded once; None where there is no such product.

        Nor is there one where the compiled kernels have the product: theirs and the activation are faster.
        """
        if not self._blocked or self._kernels_for(x, bias) is not None:
            return None
        return followed_product(x.contiguous(), self._for_forward(), bias, after)

    def _for_forward(self) -> Tensor:
        if self._forward is None:
            self._forward = _in_blocks(self.weight.t() if self.transposed else self.weight)
        return self._forward

    def input_gradient(self, grad: Tensor, beside: Tensor | None = None) -> Tensor:
        """(T, m) -> (T, n): the gradient of the input, plus `beside` (T, n)."""
        found = self.adapted_gradient(grad, beside)
        if found is not None:
            return found[0]
        if self._blocked:
            if self._backward is None:
                self._backward = _in_blocks(self.weight if self.transposed else self.weight.t())
            return _blocked_product(grad, self._backward, None, beside)
        W = self.weight.t() if self.transposed else self.weight
        return torch.mm(grad, W) if beside is None else torch.addmm(beside, grad, W)

    def adapted(
        self, x: Tensor, bias: Tensor | None, residual: Tensor | None, adapters: Adapters = NO_ADAPTERS
    ) -> tuple[Tensor, Tensor | None] | None:
        """`product` and what adapters add, as one by the compiled kernels; None where they have none.

        `Kernels.frozen_forward` says what the arguments and the two tensors are.
        """
        compiled = self._kernels_for(x, bias, residual)
        if compiled is None:
            return None
        tiles, residual = self._in_tiles(compiled, turned=False), _contiguous(residual)
        return compiled.frozen_forward(x.contiguous(), tiles, bias, residual, adapters)

    def adapted_gradient(
        self,
        grad: Tensor,
        beside: Tensor | None,
        x: Tensor | None = None,
        h: Tensor | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> tuple[Tensor, list[Tensor]] | None:
        """`input_gradient` with adapters and the factors' gradients, as one by the kernels; None where there are none.

        `Kernels.frozen_backward` says what the arguments and the results are.
        """
        compiled = self._kernels_for(grad, beside)
        if compiled is None:
            return None
        tiles, beside = self._in_tiles(compiled, turned=True), _contiguous(beside)
        return compiled.frozen_backward(grad.contiguous(), tiles, beside, x, h, adapters)

    def _kernels_for(self, *tensors: Tensor | None) -> Kernels | None:
        """The compiled kernels, where they have products with this weight and tensors."""
        if any(t is not None and t.dtype is not self.weight.dtype for t in tensors):
            return None
        return self.compiled()

    def compiled(self) -> Kernels | None:
        """The compiled kernels, where they have products with this weight."""
        found = kernels() if self._kept else None
        if found is None or not found.takes_frozen(self.weight.dtype, *self.weight.shape):
            return None
        return found

    def _in_tiles(self, compiled: Kernels, *, turned: bool) -> Tensor:
        """W (m, n), or W^T (n, m) if `turned`, as the kernels want it."""
        if turned not in self._tiles:
            self._tiles[turned] = _laid(compiled, self.weight, transposed=self.transposed != turned)
        return self._tiles[turned]


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def followed_product(x: Tensor, weight: Tensor, bias: Tensor | None, after: After) -> Tensor:
    """x (T, n) contiguous bf16, and a weight (m, n) in blocks or not -> (T, m) the activation of their product."""
    ops: Any = torch.ops.mkldnn
    out: Tensor = ops._linear_pointwise(x, weight, bias, after[0], [], after[1])
    return out


def _blocked_product(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    ops: Any = torch.ops.mkldnn
    x = x.contiguous()
    rows, n = x.shape
    if _PIECE < rows <= _PIECES_UP_TO and 512 <= weight.shape[0] <= n:
        pieces = -(-rows // _PIECE)
        added_to = [None] * pieces if residual is None else residual.chunk(pieces)
        return torch.cat(
            [
                _blocked_product(part, weight, bias, r)
                for part, r in zip(x.chunk(pieces), added_to, strict=True)
            ]
        )
    if residual is None:
        return followed_product(x, weight, bias, _NONE)
    added: Tensor = ops._linear_pointwise.binary(x, residual, weight, bias, "add")
    return added


@torch.inference_mode(False)  # what a prediction lays out, training has to be able to use
@torch.no_grad()
def _laid(compiled: Kernels, weight: Tensor, *, transposed: bool) -> Tensor:
    """(m, n), or (n, m) if `transposed`, in the kernels' tiles."""
    tiles = compiled.frozen_tiles(weight.contiguous(), transposed=transposed)
    let_go(weight)
    return tiles


@torch.inference_mode(False)  # what a prediction lays out, training has to be able to use
@torch.no_grad()
def _in_blocks(weight: Tensor) -> Tensor:
    """(m, n) in oneDNN's blocks."""
    ops: Any = torch.ops.mkldnn
    blocked: Tensor = ops._reorder_linear_weight(weight.contiguous(), _ROWS)
    let_go(weight)
    return blocked


def let_go(weight: Tensor) -> None:
    """Give back the pages of a weight that a copy stands for from here on, where they are a mapped file's."""
    if weight.is_contiguous() or weight.t().is_contiguous():
        let_go_of_file_pages(weight.data_ptr(), weight.nbytes)


def takes_any_rows(like: Tensor) -> bool:
    """Whether products of states like this, on a CPU, cost no more with a number of rows not met before.

    The compiled ones in fp32 do not; oneDNN makes new kernels for each.
    """
    compiled = kernels() if like.dtype is torch.float32 else None
    return compiled is not None and compiled.takes_frozen(like.dtype, 16, 16)


@lru_cache(maxsize=1)
def has_blocks() -> bool:
    """Whether this PyTorch has blocked products and they give the plain ones' results: tried on a small product."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    with torch.inference_mode():
        x = torch.arange(96, dtype=torch.float32).reshape(6, 16).sin().to(torch.bfloat16)
        W = torch.arange(512, dtype=torch.float32).reshape(32, 16).cos().to(torch.bfloat16)
        b = torch.arange(32, dtype=torch.float32).sin().to(torch.bfloat16)
        residual = torch.ones(6, 32, dtype=torch.bfloat16)
        try:
            found = _blocked_product(x, _in_blocks(W), b, None)
            added = _blocked_product(x, _in_blocks(W), b, residual)
            bent = followed_product(x, W, b, ("gelu", "tanh"))
        except (RuntimeError, AttributeError, NotImplementedError):
            return False
        plain = x.float() @ W.float().t() + b.float()
        pairs = (
            (found, plain),
            (added, plain + 1.0),
            (bent, torch.nn.functional.gelu(plain, approximate="tanh")),
        )
        return all(torch.allclose(y.float(), exact, rtol=0.02, atol=0.05) for y, exact in pairs)
