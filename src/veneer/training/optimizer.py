"""The optimiser of the trained tensors, and its state by their names.

This file knows tensors and their names; it knows no batch and no schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["load_weights_", "make_optimizer", "optimizer_tensors", "restore_", "share_gradients_"]


def make_optimizer(
    weights: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) as one fused kernel; biases and vectors are not decayed.

    After a step each weight counts it as a change in place, which PyTorch's fused kernel itself does not: the engine
    keeps factors in the compute dtype and sees by that count that they have to be taken over anew.
    """
    matrices = [p for p in weights.values() if p.ndim >= 2]
    vectors = [p for p in weights.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    fused = next(iter(weights.values())).device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=learning_rate,
        weight_decay=weight_decay,
        fused=fused,
    )
    optimizer.register_step_post_hook(_count_changes)
    return optimizer


def _count_changes(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    changed = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch.autograd.graph.increment_version(changed)


def optimizer_tensors(
    weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimiser's state by the names of the weights: "<name>.exp_avg" and so on."""
    return {
        f"{name}.{key}": value
        for name, parameter in weights.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_weights_(weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the weights of the same names."""
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(tensors[name])


def restore_(
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    """Put the tensors of a checkpoint into the weights and, by `optimizer_tensors`' names, into the optimiser."""
    load_weights_(weights, tensors)
    for name, parameter in weights.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensor = moments.get(f"{name}.{key}")
            if tensor is not None:
                optimizer.state[parameter][key] = tensor.to(parameter.device)


def share_gradients_(weights: Mapping[str, nn.Parameter], accelerator: Any) -> None:
    """Sum the gradients of all processes: the adapter's few megabytes in one message."""
    parameters = [p for p in weights.values() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    flat = accelerator.reduce(flat, "sum")
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
