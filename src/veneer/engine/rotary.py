"""Rotary positions (Su et al. 2021, section 3.2.2) on the rows of a packed batch, with their gradient.

The angles are the model's own: its rotary module is asked for the positions of the packed texts, so that scaled forms
(linear, llama3, yarn) are what the model means by them. Forms whose angles depend on the longest text of a batch
(dynamic, longrope) have no packed form: `Rotary.of` says so.

This file knows transformers' rotary modules; it knows no model.

Shapes: R rows, N heads, D head size, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veneer.engine.packing import Layout

__all__ = ["Rotary", "Turn"]

_KNOWN = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Turn:
    """The angles of some rows.

    Attributes:
        cos, sin: (R, 1, D / 2) in the dtype of what is turned.
    """

    cos: Tensor
    sin: Tensor

    def at(self, rows: Tensor) -> Turn:
        """Those of some of the rows."""
        return Turn(self.cos.index_select(0, rows), self.sin.index_select(0, rows))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """x (R, N, D) with each row turned by its angles, in `out`, which is no part of x."""
        return self._turned(x, out, 1.0)

    def backward(self, grad: Tensor, out: Tensor) -> Tensor:
        """The gradient of the input: turned back, in `out`."""
        return self._turned(grad, out, -1.0)

    def _turned(self, x: Tensor, out: Tensor, sign: float) -> Tensor:
        (x_1, x_2), (y_1, y_2) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(x_1, self.cos, out=y_1)
        y_1.addcmul_(x_2, self.sin, value=-sign)
        torch.mul(x_2, self.cos, out=y_2)
        y_2.addcmul_(x_1, self.sin, value=sign)
        return out


class Rotary:
    """A model's rotary module, asked once for each layout."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def of(cls, module: Any, head_size: int) -> Rotary | None:
        """From a module of transformers; None where its angles are not those of each token's position alone."""
        if getattr(module, "rope_type", None) not in _KNOWN or "forward" in vars(module):
            return None
        with torch.no_grad():
            places = torch.arange(8, device=module.inv_freq.device)
            cos, sin = module(places.float(), places.unsqueeze(0))
        both = cos.shape[-1] == head_size and all(torch.equal(*part.chunk(2, dim=-1)) for part in (cos, sin))
        return cls(module) if both else None

    def turn(self, layout: Layout, like: Tensor) -> Turn:
        """The angles of the rows of `like` (R, ...), in its dtype; rows behind the texts have position 0."""
        key = ("rotary", self.module, like.dtype, like.shape[0])
        if key not in layout.derived:
            layout.derived[key] = self._angles(layout, like)
        found: Turn = layout.derived[key]
        return found

    @torch.inference_mode(False)  # what a prediction computes, training may meet again
    @torch.no_grad()
    def _angles(self, layout: Layout, like: Tensor) -> Turn:
        positions = torch.arange(layout.tokens, device=like.device) - layout.first[layout.text_of_token]
        positions = nn.functional.pad(positions, (0, like.shape[0] - layout.tokens))
        empty = torch.empty(0, dtype=like.dtype, device=like.device)
        cos, sin = self.module(empty, positions.unsqueeze(0))  # (1, R, D)
        half = cos.shape[-1] // 2
        return Turn(*(part[0, :, None, :half].contiguous() for part in (cos, sin)))
