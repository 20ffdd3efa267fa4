"""The head of a causal model and its cross-entropy, in pieces: the logits of a large vocabulary never exist whole.

For 4,000 labelled tokens and 50,257 words the logits take 800 MB and their gradient as much again. Here a piece of the
states at a time gets its logits, its loss and, by hand, its gradient, and the logits are gone before the next piece.

    losses = token_losses(states, targets, model.lm_head)[:, 0]   # F.cross_entropy(lm_head(states), reduction="none")

A head that is not a plain frozen linear layer (with LoRA on it, trained, softcapped) is computed in the same pieces, by
autograd, each piece again in the backward pass.

This file knows tensors and layers; it knows no model, no text and no task.

Shapes: S labelled tokens, C hidden size, V size of the vocabulary, n tokens of a piece.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from veneer.engine.frozen import FrozenLinear
from veneer.engine.packing import filled_up
from veneer.lora.layers import Layout, layout_of

__all__ = ["logits_of", "token_losses"]

_PIECE_VALUES = 2**23
"""Logits that exist at a time: 32 MB in fp32."""

_CACHED_VALUES = 2**19
"""Logits that are in fp32 at a time and go through a dozen passes: 2 MB, so that they stay in the cache."""


def logits_of(head: nn.Module, states: Tensor, softcap: float | None = None) -> Tensor:
    """States (n, C) -> logits (n, V), float32; `softcap` c makes them c tanh(z / c), as Gemma 2 does."""
    logits: Tensor = head(states.to(_dtype(head, states))).float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def token_losses(
    states: Tensor,
    targets: Tensor,
    head: nn.Module,
    *,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    piece: int | None = None,
) -> Tensor:
    """(S, 2) float32: the cross-entropy of each token under `head`, differentiable; and how far its logit is below the
    highest, without a gradient: 0 where the token is the likeliest, at most -1e-6 elsewhere.

    Args:
        states: (S, C) of any floating dtype.
        targets: (S,) int64 below V.
        head: gives logits (S, V).
        label_smoothing: in [0, 1), as in `torch.nn.functional.cross_entropy`.
        softcap: see `logits_of`.
        piece: n, tokens whose logits exist at a time; None: so many that they take 32 MB.
    """
    size = piece or _piece_of(_outputs(head))
    if softcap is None and _is_plain(head):
        layer: Any = head
        x = states.to(layer.weight.dtype)
        losses, below = _PiecewiseLoss.apply(x, targets, _frozen(layer), layer.bias, label_smoothing, size)
        return torch.stack([losses, below], dim=1)

    def piece_of(x: Tensor, t: Tensor) -> Tensor:
        logits = logits_of(head, x, softcap)
        loss = nn.functional.cross_entropy(logits, t, reduction="none", label_smoothing=label_smoothing)
        logits = logits.detach()
        return torch.stack(
            [loss, _below(logits.gather(1, t.unsqueeze(1)).squeeze(1), t, *logits.max(dim=1))], dim=1
        )

    found = []
    for x, t in zip(states.split(size), targets.split(size), strict=True):
        again = torch.is_grad_enabled()
        found.append(checkpoint(piece_of, x, t, use_reentrant=False) if again else piece_of(x, t))
    return torch.cat(found)


class _PiecewiseLoss(torch.autograd.Function):
    """logsumexp(z_s) - z_s[t_s] of each token s, with z = x W^T + b and W, b frozen; dx is made in the forward pass.

    dz_s = softmax(z_s) - onehot(t_s), with smoothing e: softmax(z_s) - (1 - e) onehot(t_s) - e / V. A token's loss
    depends on its own state alone, so dz W (S, C) is all that has to be kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, frozen: FrozenLinear, b: Tensor | None, smooth: float, n: int
    ) -> tuple[Tensor, Tensor]:
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(t), dtype=torch.float32, device=x.device)
        below = torch.empty_like(losses)
        for start in range(0, len(t), n):
            rows = slice(start, start + n)
            filled = filled_up(x[rows])
            whole = frozen.product(filled, b)  # (n, V), and rows behind that belong to no token
            z = whole[: len(t[rows])]
            few = max(1, _CACHED_VALUES // z.shape[1])
            parts = (part.split(few) for part in (z, t[rows], losses[rows], below[rows]))
            for z_part, t_part, losses_part, below_part in zip(*parts, strict=True):
                wide = z_part.float()  # itself in fp32
                found = _scores_then_gradient_(wide, t_part, smooth)
                losses_part.copy_(found[0])
                below_part.copy_(found[1])
                if dx is not None:
                    z_part.copy_(wide)
            if dx is not None:
                whole[len(z) :] = 0
                dx[rows] = frozen.input_gradient(whole)[: len(z)]
        ctx.save_for_backward(dx)
        ctx.mark_non_differentiable(below)
        return losses, below

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _below: Tensor) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        return dx * grad.to(dx.dtype).unsqueeze(1), None, None, None, None, None


def _scores_then_gradient_(z: Tensor, t: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """The losses (n,) of logits z (n, V) for targets t, and how far below the highest; z becomes its gradient."""
    at = t.unsqueeze(1)
    chosen = z.gather(1, at).squeeze(1)
    wanted = chosen if smooth == 0 else (1.0 - smooth) * chosen + smooth * z.mean(dim=1)
    highest, best = z.max(dim=1)
    z.sub_(highest.unsqueeze(1)).exp_()
    sums = z.sum(dim=1)
    z.div_(sums.unsqueeze(1))
    z.scatter_add_(1, at, torch.full_like(at, smooth - 1.0, dtype=z.dtype))
    if smooth:
        z.sub_(smooth / z.shape[1])
    return sums.log() + highest - wanted, _below(chosen, t, highest, best)


def _below(chosen: Tensor, t: Tensor, highest: Tensor, best: Tensor) -> Tensor:
    """(n,) 0 where the first of the highest logits is the target's, else the difference, at most -1e-6."""
    return torch.where(best == t, 0.0, (chosen - highest).clamp(max=-1e-6))


_laid_out: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], FrozenLinear]] = WeakKeyDictionary()


def _frozen(layer: Any) -> FrozenLinear:
    """The layer's weight as the product takes it, laid out once."""
    weight: Tensor = layer.weight
    stamp = (weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version)
    known = _laid_out.get(layer)
    if known is None or known[0] != stamp:
        known = (stamp, FrozenLinear(weight, transposed=False))
        _laid_out[layer] = known
    return known[1]


def _is_plain(head: nn.Module) -> bool:
    """A frozen linear layer and nothing else: no adapter, nobody's hook."""
    if layout_of(head) is not Layout.LINEAR or any(p.requires_grad for p in head.parameters()):
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(head)


def _piece_of(vocabulary: int) -> int:
    found = max(16, _PIECE_VALUES // max(1, vocabulary))
    return found - found % 32 if found > 32 else found


def _outputs(head: nn.Module) -> int:
    """V, as far as a layer says it."""
    for holder in (head, getattr(head, "base_layer", None)):
        found = getattr(holder, "out_features", None)
        if isinstance(found, int):
            return found
    return max((len(p) for p in head.parameters()), default=1)


def _dtype(head: nn.Module, states: Tensor) -> torch.dtype:
    """What the head's weight reads; an adapter's layers bring their input to it themselves."""
    weight = getattr(head, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) else states.dtype
