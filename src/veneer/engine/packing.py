"""Texts of a batch, end to end: the packed batch and its layout.

A packed batch holds the tokens of B texts in one row of T tokens, without padding. Positions restart with each text.
The texts lie in order of their length, so that attention can treat neighbours of similar length as one batched
product; `order` says which text of the caller stands where.

This file knows no model and no task.

Shapes: B texts, T tokens in all, R rows of a filled-up batch, n texts of a group, L tokens that each is filled to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Group", "Layout", "PackedBatch", "few_numbers", "filled_to", "filled_up", "pack"]

# Groups are filled up to a multiple of this many tokens, so that the shapes of their products repeat from batch to
# batch (a machine's library makes a kernel for each new shape, which costs more than the product) and vectors come
# out even. A group costs a dozen kernel launches, which is what filling up this many further score elements of each
# head costs; so fewer texts join the next longer group. Chosen by measurement, see docs/experiments.md.
_GROUP_STEP = 32
_GROUP_WORTH = 6_000


def few_numbers(rows: int) -> int:
    """At least `rows`, one of few numbers: each new number of rows costs a CPU's library new kernels."""
    step = 8 if rows <= 64 else 16 if rows <= 256 else 32 if rows <= 1024 else 128
    return -(-rows // step) * step


def filled_up(x: Tensor) -> Tensor:
    """x (n, ...) with zeros behind its rows: on a CPU one of few numbers, see `few_numbers`."""
    return filled_to(x, few_numbers(len(x))) if x.device.type == "cpu" else x


def filled_to(x: Tensor, rows: int) -> Tensor:
    """x (n, ...) with zeros behind its rows, n <= `rows` in all; itself where nothing is missing."""
    behind = rows - len(x)
    return nn.functional.pad(x, (0, 0) * (x.dim() - 1) + (0, behind)) if behind else x


@dataclass(frozen=True)
class Group:
    """Neighbouring texts of similar length, which attention handles as one batched product.

    Attributes:
        start, end: the group's token range in the packed row.
        n: number of texts.
        longest: L, the tokens of the longest text or a few more, which no text fills.
        gather: (n * L,) int64, for each padded place the token in [0, end - start) that fills it (padding repeats
            token 0); None where all texts have L tokens.
        valid: (end - start,) int64, for each token its padded place; None likewise.
        padding: (n, 1, L) bool, True at padded places; None likewise.
    """

    start: int
    end: int
    n: int
    longest: int
    gather: Tensor | None
    valid: Tensor | None
    padding: Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where each text of a packed row lies.

    Attributes:
        lengths: tokens of each text, in packed order, rising.
        cu_seqlens: (B + 1,) int32, the cumulative lengths, 0 first.
        derived: what a kind of attention made of this layout and needs in the next layer again.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    derived: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """T, the number of tokens."""
        return sum(self.lengths)

    @property
    def rows(self) -> int:
        """R > T: the rows of a filled-up batch, one of few numbers; see `PackedBatch.filled_up`."""
        step = 32 if self.tokens < 1024 else 64 if self.tokens < 4096 else 256
        return (self.tokens // step + 1) * step

    @property
    def longest(self) -> int:
        """The tokens of the longest text."""
        return max(self.lengths)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The texts by length, for attention; made when they are asked for, since the compiled one asks for none."""
        ends, device = np.cumsum(np.asarray(self.lengths, dtype=np.int64)), self.cu_seqlens.device
        return tuple(
            _group(self.lengths[begin:end], int(ends[begin]) - self.lengths[begin], device)
            for begin, end in _divided(self.lengths)
        )

    @cached_property
    def first(self) -> Tensor:
        """(B,) int64: the place of each text's first token."""
        return self.cu_seqlens[:-1].long()

    @cached_property
    def last(self) -> Tensor:
        """(B,) int64: the place of each text's last token."""
        return self.cu_seqlens[1:].long() - 1

    @cached_property
    def text_of_token(self) -> Tensor:
        """(T,) int64: the text (in packed order) that each token belongs to."""
        lengths = self.cu_seqlens.diff().long()
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=lengths.device), lengths)


@dataclass(frozen=True)
class PackedBatch:
    """B texts end to end.

    Attributes:
        input_ids: (T,) int64.
        position_ids: (T,) int64, from 0 within each text (an engine adds a family's own offset).
        layout: where each text lies.
        order: (B,) `order[i]` is the caller's number of the i-th packed text.
        token_type_ids: (T,) int64 where the texts have segments, else None.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    order: tuple[int, ...]
    token_type_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.order)

    @property
    def tokens(self) -> int:
        """T, the number of tokens."""
        return int(self.input_ids.shape[0])

    def filled_up(self) -> PackedBatch:
        """The same batch with tokens behind the texts that belong to none, R rows in all.

        Each new number of rows costs the machine's library new kernels; so there are few numbers. The layout does not
        know of the rows behind the texts: nothing attends to them and nothing reads them.
        """
        rows, types = self.layout.rows, self.token_type_ids
        return PackedBatch(
            filled_to(self.input_ids, rows),
            filled_to(self.position_ids, rows),
            self.layout,
            self.order,
            token_type_ids=None if types is None else filled_to(types, rows),
        )

    def only(self, tokens: Tensor) -> PackedBatch:
        """These tokens (n,) of it, for an embedding: the layout stays that of all."""
        types = self.token_type_ids
        return replace(
            self,
            input_ids=self.input_ids.index_select(0, tokens),
            position_ids=self.position_ids.index_select(0, tokens),
            token_type_ids=None if types is None else types.index_select(0, tokens),
        )

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        if torch.device(device) == self.input_ids.device:
            return self
        layout = Layout(self.layout.lengths, self.layout.cu_seqlens.to(device))
        types = None if self.token_type_ids is None else self.token_type_ids.to(device)
        return PackedBatch(
            self.input_ids.to(device), self.position_ids.to(device), layout, self.order, token_type_ids=types
        )


def pack(
    texts: Sequence[npt.ArrayLike], token_type_ids: Sequence[npt.ArrayLike] | None = None
) -> PackedBatch:
    """Lay texts end to end, the shortest first.

    Args:
        texts: B sequences of token ids, none of them empty.
        token_type_ids: B sequences of segment ids of the same lengths, or None.

    Returns:
        The packed batch, on the CPU.

    Raises:
        ValueError: there is no text, or one has no token (the tasks remove empty texts before they come here).

    >>> batch = pack([[5, 6, 7], [8]])
    >>> batch.input_ids.tolist(), batch.position_ids.tolist(), batch.order
    ([8, 5, 6, 7], [0, 0, 1, 2], (1, 0))
    """
    arrays = [np.asarray(text, dtype=np.int64) for text in texts]
    if not arrays or min(len(a) for a in arrays) == 0:
        raise ValueError("pack() needs at least one text, and at least one token in each")
    lengths = np.array([len(a) for a in arrays], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    ids = np.concatenate([arrays[i] for i in order])
    types = None
    if token_type_ids is not None:
        types = torch.from_numpy(
            np.concatenate([np.asarray(token_type_ids[i], dtype=np.int64) for i in order])
        )
    return PackedBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        layout=layout_of([int(n) for n in lengths]),
        order=tuple(int(i) for i in order),
        token_type_ids=types,
    )


def layout_of(lengths: Sequence[int]) -> Layout:
    """The layout of texts whose lengths rise.

    Args:
        lengths: tokens of each text, in packed order, rising.
    """
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    cu_seqlens = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
    return Layout(tuple(int(n) for n in lengths), cu_seqlens)


def _divided(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """First text and end of each group, by lengths that rise."""
    steps = [-(-n // _GROUP_STEP) for n in lengths]
    found: list[tuple[int, int]] = []
    end = len(lengths)
    while end > 0:  # from the longest text down
        size, begin = steps[end - 1], end - 1
        while begin > 0:
            shorter = bisect_left(steps, steps[begin - 1])  # where the texts of the next smaller size begin
            filling = (begin - shorter) * (size**2 - steps[begin - 1] ** 2) * _GROUP_STEP**2
            if steps[begin - 1] < size and filling > _GROUP_WORTH:
                break
            begin = shorter
        found.append((begin, end))
        end = begin
    return found[::-1]


def _group(lengths: Sequence[int], start: int, device: torch.device) -> Group:
    n, tokens = len(lengths), int(sum(lengths))
    longest = -(-lengths[-1] // _GROUP_STEP) * _GROUP_STEP
    if lengths[0] == longest:
        return Group(start, start + tokens, n, longest, None, None, None)
    sizes = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    place = np.arange(longest)
    inside = place[None, :] < sizes[:, None]  # (n, L)
    gather = np.where(inside, starts[:, None] + place[None, :], 0).reshape(-1)
    valid = np.flatnonzero(inside.reshape(-1))
    return Group(
        start,
        start + tokens,
        n,
        longest,
        torch.from_numpy(gather).to(device),
        torch.from_numpy(valid).to(device),
        torch.from_numpy(~inside[:, None, :]).to(device),
    )
