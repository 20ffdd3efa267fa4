"""Layers that share an input, each as a product of its own: a `LinearGroup` with joining switched off (`switches`).

Shapes: T tokens, n inputs, M outputs of all layers, R rank of all adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.joined import Joined
from veneer.engine.linears import LinearGroup

__all__ = ["Apart"]


class Apart:
    """The same group, layer by layer."""

    def __init__(self, group: LinearGroup) -> None:
        self.slots = group.slots
        self.groups = [LinearGroup(slot) for slot in group.slots]

    @property
    def layers(self) -> list[nn.Module]:
        """What hangs in the slots now."""
        return [layer for group in self.groups for layer in group.layers]

    def ready(self) -> bool:
        """As of the group."""
        return all(group.ready() for group in self.groups)

    def __call__(self, x: Tensor, residual: Tensor | None = None, columns: slice | None = None) -> Tensor:
        """(T, n) -> (T, M), or (T, some of them): whole layers, where `columns` are given."""
        assert residual is None
        return torch.cat([group(x) for group in self._chosen(columns)], dim=1)

    def joined(self, dtype: torch.dtype, columns: slice | None = None) -> _Products:
        """The products as they are now."""
        return _Products(tuple(group.joined(dtype) for group in self._chosen(columns)))

    def _chosen(self, columns: slice | None) -> list[LinearGroup]:
        """The layers of some outputs; they are of one size."""
        if columns is None:
            return self.groups
        first: Any = self.layers[0]
        size = int(getattr(first, "base_layer", first).out_features)
        return self.groups[columns.start // size : columns.stop // size]


@dataclass(frozen=True)
class _Products:
    """As `veneer.engine.linears.Joined`, one after the other."""

    parts: tuple[Joined, ...]

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """Those of all parts."""
        return tuple(factor for part in self.parts for factor in part.factors)

    @property
    def trained(self) -> bool:
        """Whether any factor wants a gradient."""
        return any(part.trained for part in self.parts)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(T, n) -> (T, M), and the small products side by side."""
        assert residual is None
        found = [part.forward(x) for part in self.parts]
        kept = [h for _, h in found if h is not None]
        return torch.cat([y for y, _ in found], dim=1), torch.cat(kept, dim=1) if kept else None

    def backward(
        self, grad: Tensor, x: Tensor | None, h: Tensor | None, *, need_x: bool, beside: Tensor | None = None
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of the input and of the factors."""
        grads = grad.chunk(len(self.parts), dim=1)
        hs: Sequence[Any] = [None] * len(self.parts)
        if h is not None:
            widths = [
                sum(part.shape[1]) if part.kernels is None else part.adapters.width for part in self.parts
            ]
            hs = [own.contiguous() for own in h.split(widths, dim=1)]
        found: list[Tensor | None] = []
        for part, own, own_h in zip(self.parts, grads, hs, strict=True):
            beside, of_factors = part.backward(own.contiguous(), x, own_h, need_x=need_x, beside=beside)
            found += of_factors
        return beside if need_x else None, found
