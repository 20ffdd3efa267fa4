"""Counting parameters: exactly, each tensor once. This file must not know configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from veneer.lora.state import adapters_of

__all__ = ["ParameterCount", "count_parameters"]


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of values. A tensor that two modules share counts once."""

    total: int
    """The base and everything attached to it, whether active or not."""
    trainable: int
    """Those that require gradients."""

    @property
    def frozen(self) -> int:
        """Those that don't."""
        return self.total - self.trainable

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total if self.total else 0.0
        return f"parameters: {self.trainable:,} trainable of {self.total:,} ({share:.2f} %)"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model, with its adapters if it has any.

    The total holds the originals that wait beside the trained copies of whole modules and biases.
    """
    seen = {id(parameter): parameter for parameter in _everything(model)}
    total = sum(parameter.numel() for parameter in seen.values())
    return ParameterCount(total, sum(p.numel() for p in seen.values() if p.requires_grad))


def _everything(model: nn.Module) -> Iterator[nn.Parameter]:
    yield from model.parameters()
    state = adapters_of(model)
    if state is None:
        return
    for record in state.adapters.values():
        yield from (parameter for _, parameter in record.parameters())
        for module in record.saved:
            if module.waiting is not None:
                yield from module.waiting.parameters()
        yield from (bias.waiting for bias in record.biases if bias.waiting is not None)
