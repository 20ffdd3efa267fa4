"""The product of a LoRA layer and its gradient, written by hand.

    y = x W^T + b + s · drop(x) A^T B^T

Written as separate operations this needs a second tensor as wide as the output for the low-rank part, a
third for the sum, and a copy of the input in the dtype of A. Here the low-rank part is added in place, A and
B (small) are cast instead of x (large), and only x and the (T, r) product h are kept for the gradient.

This file must not know modules, adapters or configurations: tensors in, tensors out.

T tokens (all leading dimensions of x together), n inputs, m outputs, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["lora_linear", "low_rank_product"]


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    transposed: bool = False,
) -> Tensor:
    """`x W^T + b + scaling · drop(x) A^T B^T` (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    Args:
        x: (..., n), any floating dtype.
        weight: (m, n) as in `nn.Linear`; (n, m) as in `Conv1D` with `transposed`. In the dtype of x.
        bias: (m,) or None; cast to the dtype of x.
        lora_A: (r, n). Usually fp32 whatever the dtype of x is; cast to it.
        lora_B: (m, r), likewise.
        scaling: the factor s.
        dropout: probability in [0, 1) that an input of A is zeroed; 0 where the layer is not in training.
        transposed: the layout of `weight`.

    Returns:
        (..., m) in the dtype of x. Gradients come back in the dtype of each argument: fp32 for fp32 A and B.

    Under autocast x and the weight are cast to its dtype, as `nn.Linear` would do.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            return lora_linear(
                x.to(dtype),
                weight.to(dtype),
                bias,
                lora_A,
                lora_B,
                scaling,
                dropout=dropout,
                transposed=transposed,
            )
    if not torch.is_grad_enabled():
        return _forward(
            x, weight, bias, lora_A, lora_B, scaling, _keep_mask(x, dropout), dropout, transposed
        )[0]
    y: Tensor = _LoraLinear.apply(x, weight, bias, lora_A, lora_B, scaling, dropout, transposed)
    return y


def low_rank_product(
    x: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, *, dropout: float = 0.0
) -> Tensor:
    """`scaling · drop(x) A^T B^T` alone, (..., m), by PyTorch's own gradients.

    For the second adapter of a layer and for layers whose own `forward` has to run (hooks on it).
    """
    if dropout > 0.0:
        x = torch.nn.functional.dropout(x, dropout)
    h = torch.nn.functional.linear(x, lora_A.to(x.dtype))
    return torch.nn.functional.linear(h, lora_B.to(x.dtype)) * scaling


def _keep_mask(x: Tensor, dropout: float) -> Tensor | None:
    """True where an input of A is kept; (T, n) booleans, one byte each. None without dropout."""
    if dropout == 0.0:
        return None
    return torch.empty_like(x, dtype=torch.bool).bernoulli_(1.0 - dropout).reshape(-1, x.shape[-1])


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    keep: Tensor | None,
    dropout: float,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """y (..., m) and h = drop(x) A^T (T, r)."""
    X = x.reshape(-1, x.shape[-1])  # (T, n)
    W_t = weight if transposed else weight.t()  # (n, m)
    Y = X @ W_t if bias is None else torch.addmm(bias.to(x.dtype), X, W_t)  # (T, m)
    h = _dropped(X, keep, dropout) @ lora_A.to(x.dtype).t()  # (T, r)
    Y.addmm_(h, lora_B.to(x.dtype).t(), alpha=scaling)
    return Y.reshape(*x.shape[:-1], Y.shape[-1]), h


def _dropped(X: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    return X if keep is None else (X * keep).mul_(1.0 / (1.0 - dropout))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> Tensor:
        """x (..., n) -> y (..., m); only what the wanted gradients need is kept."""
        keep = _keep_mask(x, dropout)
        y, h = _forward(x, weight, bias, lora_A, lora_B, scaling, keep, dropout, transposed)
        need_x, need_weight, _, need_A, need_B = ctx.needs_input_grad[:5]
        ctx.save_for_backward(
            x if need_A or need_weight else None,
            weight if need_x else None,
            lora_A if need_x else None,
            lora_B if need_x or need_A else None,
            h if need_B else None,
            keep if need_x or need_A else None,
        )
        ctx.scaling, ctx.dropout, ctx.transposed = scaling, dropout, transposed
        ctx.x_shape = x.shape
        ctx.dtypes = (None if bias is None else bias.dtype, lora_A.dtype, lora_B.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of y's gradient (..., m): those of x, weight, bias, A and B in their own shapes and dtypes, where wanted."""
        x, weight, lora_A, lora_B, h, keep = ctx.saved_tensors
        need_x, need_weight, need_bias, need_A, need_B = ctx.needs_input_grad[:5]
        bias_dtype, A_dtype, B_dtype = ctx.dtypes
        G = grad.reshape(-1, grad.shape[-1])  # (T, m)
        grad_x = grad_weight = grad_bias = grad_A = grad_B = None
        if need_x or need_A:
            g = (G @ lora_B.to(G.dtype)).mul_(ctx.scaling)  # (T, r)
        if need_A or need_weight:
            X = x.reshape(-1, x.shape[-1])  # (T, n)
        if need_A:
            grad_A = (g.t() @ _dropped(X, keep, ctx.dropout)).to(A_dtype)  # (r, n)
        if need_B:
            grad_B = (G.t() @ h).to(B_dtype).mul_(ctx.scaling)  # (m, r)
        if need_bias:
            grad_bias = G.sum(0, dtype=bias_dtype)  # (m,)
        if need_weight:
            grad_weight = X.t() @ G if ctx.transposed else G.t() @ X
        if need_x:
            grad_x = _grad_x(G, g, weight, lora_A, keep, ctx.dropout, ctx.transposed).reshape(ctx.x_shape)
        return grad_x, grad_weight, grad_bias, grad_A, grad_B, None, None, None


def _grad_x(
    G: Tensor,
    g: Tensor,
    weight: Tensor,
    lora_A: Tensor,
    keep: Tensor | None,
    dropout: float,
    transposed: bool,
) -> Tensor:
    """G W + drop'(g A), (T, n)."""
    grad_X = G @ (weight.t() if transposed else weight)
    if keep is None:
        return grad_X.addmm_(g, lora_A.to(G.dtype))
    return grad_X.addcmul_(g @ lora_A.to(G.dtype), keep.to(G.dtype), value=1.0 / (1.0 - dropout))
