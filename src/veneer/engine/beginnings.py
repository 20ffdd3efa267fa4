"""What the texts of a batch have in common at their beginning: a tree, whose nodes are computed once.

Under causal attention a token's hidden state follows from the tokens up to it alone, so texts that begin alike (with
the same template, the same system prompt) have the same states there, at every layer, with or without an adapter.
Everything but attention is computed for the nodes; attention sees each text whole. Gradients of a node are the sum over
its texts, as they are without sharing. Exact as long as nothing in a layer is random (dropout) or looks ahead.

This file knows packed batches; it knows no layer.

Shapes: T tokens, R rows of the batch, U nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from veneer.engine.packing import PackedBatch, filled_to

__all__ = ["Beginnings", "beginnings_of", "common_beginning", "nodes_of", "of_tokens", "tree_of"]

_WORTH = 0.85  # of the tokens are nodes: with more of them, laying out and adding up costs what is saved
_STEP = 64  # where rows are filled up the nodes are, to a multiple, so that kernels for few numbers of them are made


@dataclass(frozen=True)
class Beginnings:
    """The tree of a batch.

    Attributes:
        node_of_token: (R,) int64, the node of each row; of the rows behind the texts node 0.
        first_token: (U + a few,) int64, the first token of each node; behind them token 0.
        nodes: U.
    """

    node_of_token: Tensor
    first_token: Tensor
    nodes: int

    def of_rows(self, x: Tensor) -> Tensor:
        """States of nodes (U + a few, C) -> those of the rows (R, C)."""
        return x.index_select(0, self.node_of_token)

    def summed(self, grad: Tensor) -> Tensor:
        """The gradient of what `of_rows` gave -> that of what it was given: a node's is the sum over its texts."""
        return grad.new_zeros(len(self.first_token), grad.shape[1]).index_add_(0, self.node_of_token, grad)

    def of_nodes(self, x: Tensor) -> Tensor:
        """States of rows (R, C) -> those of the nodes (U + a few, C)."""
        return x.index_select(0, self.first_token)

    def placed(self, grad: Tensor) -> Tensor:
        """The gradient of what `of_nodes` gave -> that of what it was given; the few behind the nodes have none."""
        rows = grad.new_zeros(len(self.node_of_token), grad.shape[1])
        return rows.index_copy_(0, self.first_token[: self.nodes], grad[: self.nodes])


def of_tokens(x: Tensor, shared: Beginnings | None) -> Tensor:
    """States of nodes (U + a few, C) as those of the rows (R, C), which they are where nothing is shared."""
    return x if shared is None else shared.of_rows(x)


def beginnings_of(batch: PackedBatch, rows: int | None = None, *, always: bool = False) -> Beginnings | None:
    """The tree of a batch, on its device; None where it does not save enough (unless `always`).

    Args:
        batch: its texts.
        rows: R, the rows that hold its T tokens (see `veneer.engine.blocks.Program.rows`); None: as filled up.
        always: whatever it saves.
    """
    if batch.token_type_ids is not None:
        return None
    if not always and nodes_of(batch) > _WORTH * batch.tokens:
        return None
    node_of_token, first = tree_of(batch)
    rows = batch.layout.rows if rows is None else rows
    behind = -len(first) % _STEP if rows > batch.tokens else 0
    return Beginnings(
        filled_to(node_of_token, rows).to(batch.input_ids.device),
        nn.functional.pad(first, (0, behind)).to(batch.input_ids.device),
        len(first),
    )


def nodes_of(batch: PackedBatch) -> int:
    """U, without the tree: in order, a text has in common with all before it what it has with the one before it."""
    ids, texts, at = batch.input_ids.tolist(), [], 0
    for length in batch.layout.lengths:
        texts.append(ids[at : at + length])
        at += length
    texts.sort()
    return at - sum(common_beginning(pair) for pair in pairwise(texts))


def tree_of(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """The tree of the texts' beginnings: (T,) the node of each token, and (U,) the first token of each node."""
    ids = batch.input_ids.tolist()
    known: dict[tuple[int, int], int] = {}
    node_of: list[int] = []
    first: list[int] = []
    at = 0
    for length in batch.layout.lengths:
        above = -1
        for token in range(at, at + length):
            key = (above, ids[token])
            node = known.get(key)
            if node is None:
                node = known[key] = len(first)
                first.append(token)
            node_of.append(node)
            above = node
        at += length
    return torch.tensor(node_of), torch.tensor(first)


def common_beginning(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with alike.

    >>> common_beginning([[5, 6, 7], [5, 6], [5, 6, 8]])
    2
    """
    alike = 0
    for column in zip(*texts, strict=False):
        if column.count(column[0]) < len(column):
            break
        alike += 1
    return alike
