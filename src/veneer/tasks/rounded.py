"""A base's weights in int8, and how far off that is: measured, and said with the precision.

This file knows a base and a precision; what int8 is, is `veneer.lora.int8`'s.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from veneer.data.choices import counted
from veneer.engine.precision import Precision
from veneer.engine.runner import padded_hidden_states, probe_batch
from veneer.errors import ConfigError
from veneer.lora import held_in_int8, quantize_
from veneer.models import Base

__all__ = ["round_base_"]


def round_base_(base: Base, precision: Precision) -> Precision:
    """Hold the blocks' weights in int8 where `precision` says so, in place; else, or where they are, nothing happens.

    Args:
        base: in float32; adapters may be attached.
        precision: as chosen.

    Returns:
        The precision; for int8 its reason says how far the hidden states of two short texts are off.

    Raises:
        ConfigError: there is nothing to round, or what is attached needs whole weights.
        BaseError: a weight that is infinite or not a number.
    """
    if precision.name != "int8" or held_in_int8(base.model):
        return precision
    exact = _states(base.model)
    layers = quantize_(base.model, keep=base.float32_modules)
    if not layers:
        raise ConfigError(
            f"precision int8: {type(base.model).__name__} has no linear layers in blocks that could be rounded. "
            "Use bf16."
        )
    if precision.dtype is torch.float32:
        # Nothing more is cast, and what lies in the mapped file would keep all of it in memory.
        for parameter in base.model.parameters():
            parameter.data = parameter.data.clone()
    found = _states(base.model)
    mean = float((found - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())
    most = float((found - exact).abs().max() / exact.abs().max())
    said = (
        f"not exact: {counted(layers, 'layer')} in int8 put the last hidden states of two short texts off by "
        f"{100 * mean:.2g} % (root mean square), the farthest number by {100 * most:.2g} % of the largest"
    )
    return replace(precision, reason=f"{precision.reason}; {said}")


@torch.no_grad()
def _states(model: nn.Module) -> Tensor:
    """(T, C) of the probe texts, float32."""
    training = model.training
    model.eval()
    try:
        batch = probe_batch(model).to(next(model.parameters()).device)
        return padded_hidden_states(model, batch).float()
    finally:
        model.train(training)
