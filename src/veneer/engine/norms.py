"""Norms forward and backward by hand: PyTorch's layer norm, and the root-mean-square norms of transformers' decoders.

RMSNorm (Zhang & Sennrich 2019, section 4): x / sqrt(mean(x^2) + eps) * w; Gemma's has 1 + w in place of w. Its written
form in transformers costs five times a layer norm on a CPU; here it costs about one. Sums are in fp32 in any dtype. The
compiled kernels (`veneer.engine.native`) compute both where they are; the parameters' gradients are PyTorch's.

This file knows modules of norms; it knows no model.

Shapes: R rows, C features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from veneer.engine.native import fits, kernels_for

__all__ = ["Kept", "applied", "is_plain", "is_rms", "norm_gradients", "normed", "rms", "rms_gradient"]

_aten: Any = torch.ops.aten

Kept = tuple[Tensor, Tensor | None, Tensor]
"""What `norm_gradients` wants: the input (..., C), the rows' means where they count, and their inverse deviations."""

_RMS = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "Phi3RMSNorm": 0.0,
    "GemmaRMSNorm": 1.0,
}
"""Names of transformers' classes, and what they add to their weight."""

_PIECE = 2**18
"""Values that are normed at a time: what stands in fp32 between two passes stays in the cache."""


def is_rms(norm: nn.Module) -> bool:
    """Whether a module is one of transformers' root-mean-square norms that are known here, as it was written."""
    kind = type(norm)
    written = kind.__name__ in _RMS and kind.__module__.startswith("transformers.models.")
    return written and "forward" not in vars(norm)


def is_plain(norm: nn.Module, x: Tensor) -> bool:
    """Whether a norm is one that this file computes, with nobody's hook, in the dtype of x."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype != x.dtype or weight.dim() != 1:
        return False
    if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks:
        return False
    if is_rms(norm):
        return x.dtype in (torch.float32, torch.bfloat16)
    return type(norm) is nn.LayerNorm and norm.bias is not None


def applied(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm of each row, differentiable; by the module itself where it is not plain."""
    if is_rms(norm) and is_plain(norm, x):
        y: Tensor = _Rms.apply(x, norm.weight, norm)
        return y
    z: Tensor = norm(x)
    return z


def normed(norm: Any, x: Tensor) -> tuple[Tensor, Kept]:
    """The norm of each row (..., C), and what `norm_gradients` wants; without a graph."""
    compiled = kernels_for(x)
    if compiled is not None:
        bias, eps, form = _form(norm)
        flat = _rows(x)
        y, mean, inverse = compiled.norm(flat, norm.weight, bias, eps, **form)
        if flat is not x:
            shape = *x.shape[:-1], 1
            y, mean, inverse = y.view_as(x), None if mean is None else mean.view(shape), inverse.view(shape)
        return y, (x, mean, inverse)
    if type(norm) is nn.LayerNorm:
        y, mean, inverse = _aten.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return y, (x, mean, inverse)
    y, inverse = rms(x, *_weight_and_eps(norm))
    return y, (x, None, inverse)


def norm_gradients(
    norm: Any, grad: Tensor, kept: Kept, need: Sequence[bool], beside: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of a norm's input and of its parameters, in their order.

    Args:
        norm: `is_plain`.
        grad: of its output, (..., C).
        kept: what `normed` gave.
        need: which parameters want one.
        beside: (..., C), what else flows into the input's gradient.
    """
    x, mean, inverse = kept
    compiled = None if any(need) else kernels_for(grad, x)
    if compiled is not None and inverse.dtype == torch.float32 and (beside is None or fits(beside)):
        flat, added = _rows(x), _RMS.get(type(norm).__name__, 0.0)
        gx = compiled.norm_gradient(grad, flat, norm.weight, mean, inverse, beside, added=added)
        return gx if flat is x else gx.view_as(x), [None] * len(need)
    of_parameters: list[Tensor | None]
    if type(norm) is nn.LayerNorm:
        assert mean is not None
        stats = mean.to(norm.weight.dtype), inverse.to(norm.weight.dtype)  # as PyTorch keeps them
        gx, *of_parameters = _aten.native_layer_norm_backward(
            grad, x, norm.normalized_shape, *stats, norm.weight, norm.bias, [True, *need]
        )
    else:
        weight, _ = _weight_and_eps(norm)
        of_weight = (grad.float() * x.float() * inverse).flatten(0, -2).sum(0) if need[0] else None
        of_parameters = [None if of_weight is None else of_weight.to(norm.weight.dtype)]
        gx = rms_gradient(grad, x, weight, inverse)
    return gx if beside is None else gx.add_(beside), of_parameters


def _rows(x: Tensor) -> Tensor:
    """(..., C) -> (R, C); x itself where it is that, as a block's states are: a view costs as much as a short call."""
    return x if x.ndim == 2 else x.view(-1, x.shape[-1])


def _form(norm: Any) -> tuple[Tensor | None, float, dict[str, Any]]:
    """Bias, epsilon, and how the compiled kernel has this norm."""
    if type(norm) is nn.LayerNorm:
        return norm.bias, norm.eps, {"centred": True, "added": 0.0, "twice": False}
    added = _RMS[type(norm).__name__]  # Gemma's 1 + w is not rounded before the product
    return None, _eps_of(norm), {"centred": False, "added": added, "twice": not added}


def rms(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (..., C) -> x / sqrt(mean(x^2) + eps) * weight in the dtype of x, and (..., 1) fp32 the inverse roots."""
    pieces = [_rms(piece, weight, eps) for piece in x.split(max(1, _PIECE * len(x) // max(1, x.numel())))]
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([y for y, _ in pieces]), torch.cat([inverse for _, inverse in pieces])


def _rms(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse.add_(eps).rsqrt_()
    if weight.dtype != x.dtype:  # Gemma's 1 + w is not rounded before the product
        return (wide * inverse).mul_(weight).to(x.dtype), inverse
    return torch.mul(wide, inverse).to(x.dtype).mul_(weight), inverse


def rms_gradient(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of the input of `rms` from that of its output.

    With g = grad * weight: inverse * g - x * inverse^3 * mean(g x). A layer norm's gradient for a mean of 0 is this but
    for the mean of g, which it takes away; on a CPU it is one pass.
    """
    if grad.device.type == "cpu" and x.ndim == 2:
        zero = torch.zeros_like(inverse)
        wide = weight.float()
        gx: Tensor = _aten.native_layer_norm_backward(
            grad, x, [x.shape[1]], zero, inverse, wide, None, [True, False, False]
        )[0]
        mean = torch.mm(grad, weight.to(grad.dtype).unsqueeze(1)).float()
        return gx.add_(mean.mul_(inverse).div_(x.shape[1]).to(grad.dtype))
    g = grad.float() * weight.float()
    wide = x.float()
    along = (g * wide).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
    return g.mul_(inverse).addcmul_(wide, along).to(grad.dtype)


def _weight_and_eps(norm: Any) -> tuple[Tensor, float]:
    """What the rows are multiplied with, and epsilon."""
    added = _RMS[type(norm).__name__]
    weight = norm.weight.detach()
    return (weight.float() + added if added else weight), _eps_of(norm)


def _eps_of(norm: Any) -> float:
    """Epsilon, under either name that transformers has for it."""
    found: float = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return found


class _Rms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor, norm: nn.Module) -> Tensor:
        y, kept = normed(norm, x)
        ctx.save_for_backward(x, kept[2])
        ctx.norm = norm
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse = ctx.saved_tensors
        gx, (of_weight,) = norm_gradients(ctx.norm, grad, (x, None, inverse), ctx.needs_input_grad[1:2])
        return gx, of_weight, None
