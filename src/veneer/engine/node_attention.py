"""Attention where the rows are nodes of a tree of beginnings: every query once, with the keys of its text.

Attention sees each text whole, so the nodes' states are laid out as rows of tokens, and what comes back is picked out;
a node's gradient is the sum over its texts. The compiled kernels need no laying out for the value.

This file knows trees and attention over rows; it knows no model.

Shapes: R rows of tokens, U nodes and a few behind them, W and C as in `veneer.engine.row_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from veneer.engine.beginnings import Beginnings
from veneer.engine.block_step import Attention
from veneer.engine.compiled_attention import CompiledRows
from veneer.engine.native import Texts

__all__ = ["CompiledNodes", "NodeAttention"]


@dataclass(frozen=True)
class NodeAttention:
    """Attention over nodes by way of the rows of their tokens.

    Attributes:
        rows: the attention over these.
        shared: the tree.
    """

    rows: Attention
    shared: Beginnings

    def forward(self, qkv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(U, W) -> (U, C), and what `backward` wants: what that of the rows does."""
        out, kept = self.rows.forward(self.shared.of_rows(qkv))
        return self.shared.of_nodes(out), kept

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the output (U, C) and what `forward` kept -> that of its input (U, W)."""
        return self.shared.summed(self.rows.backward(self.shared.placed(grad), kept))


@dataclass(frozen=True)
class CompiledNodes:
    """The same by the kernels: the value straight from the nodes, which are all that is kept.

    The nodes that a text is the first to have are its last tokens, and stand in a row.

    Attributes:
        rows: the attention over rows, by the kernels.
        shared: the tree.
    """

    rows: CompiledRows
    shared: Beginnings

    def forward(self, qkv: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(U, W) -> (U, C), whose rows behind the nodes are zero, and what `backward` wants: the input."""
        qkv = qkv.contiguous()
        return self.rows.kernels.attend(qkv, self._texts(qkv.shape[1])), [qkv]

    def backward(self, grad: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient of the output (U, C) and what `forward` kept -> that of its input (U, W)."""
        (qkv,) = kept
        return self.shared.summed(self.rows.backward(self.shared.placed(grad), [self.shared.of_rows(qkv)]))

    def _texts(self, width: int) -> Texts:
        derived = self.rows.layout.derived
        of_rows = self.rows.texts(width)
        key = ("nodes", id(of_rows))  # which the layout keeps as well
        if key not in derived:
            first = self.shared.first_token[: self.shared.nodes]
            derived[key] = replace(
                of_rows,
                q_first=torch.searchsorted(first, of_rows.k_first.to(first.dtype)).to(torch.int32),
                row=self.shared.node_of_token.to(torch.int32),
            )
        found: Texts = derived[key]
        return found
