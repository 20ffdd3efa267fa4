"""What one adapter holds in one layer: the trained tensors, and the ordinary factors A, B they amount to.

Three forms, all of the function `scaling · B A` of an ordinary LoRA, so that each can be computed, merged and
exported in one way through `factors()`:

    LowRank            A and B themselves
    SlicedLowRank      one pair for each chosen slice (query, key, value) of a fused projection
    PrincipalLowRank   PiSSA: B A - B0 A0, with A0 and B0 frozen as they were at the start; the base stays as
    it is

This file must not know layers, models or names.

r rank, n inputs, m outputs, k chosen slices of c in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["LowRank", "LowRankForm", "PrincipalLowRank", "Settings", "SlicedLowRank"]


@dataclass(frozen=True)
class Settings:
    """The numbers of one adapter in one layer, as configured."""

    r: int
    lora_alpha: float
    scaling: float
    """The factor of B A."""
    dropout: float
    """Probability in [0, 1)."""


class LowRank(nn.Module):
    """An ordinary pair. A (r, n), B (m, r)."""

    def __init__(self, settings: Settings, lora_A: Tensor, lora_B: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)

    @property
    def rank(self) -> int:
        """The rank of `factors()`."""
        return self.settings.r

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r)."""
        return self.lora_A, self.lora_B

    @torch.no_grad()
    def load_factors_(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Take over the values of A (r, n) and B (m, r)."""
        self.lora_A.copy_(lora_A)
        self.lora_B.copy_(lora_B)


class SlicedLowRank(nn.Module):
    """A pair for each chosen one of the c equal slices of the output. A (k, r, n), B (k, m / c, r).

    The same function as an ordinary adapter of rank k r with the A's under each other and a block-diagonal B.
    """

    def __init__(
        self, settings: Settings, lora_A: Tensor, lora_B: Tensor, *, slices: Sequence[int], slice_count: int
    ) -> None:
        super().__init__()
        self.settings = settings
        self.slices = tuple(slices)
        self.slice_count = slice_count
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)

    @property
    def rank(self) -> int:
        """The rank of `factors()`: k r."""
        return len(self.slices) * self.settings.r

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (k r, n) and the block-diagonal B (m, k r)."""
        k, width, r = self.lora_B.shape
        B = self.lora_B.new_zeros(self.slice_count, width, k, r)
        B[list(self.slices), :, list(range(k))] = self.lora_B
        return self.lora_A.flatten(0, 1), B.reshape(self.slice_count * width, k * r)

    def is_block_diagonal(self, lora_B: Tensor) -> bool:
        """Whether a B (m, k r) is zero outside the blocks of the chosen slices."""
        blocks = self._blocks(lora_B).clone()
        blocks[list(self.slices), :, list(range(len(self.slices)))] = 0.0
        return not bool(blocks.any())

    @torch.no_grad()
    def load_factors_(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Take over the values of A (k r, n) and a block-diagonal B (m, k r)."""
        self.lora_A.copy_(lora_A.reshape(self.lora_A.shape))
        self.lora_B.copy_(self._blocks(lora_B)[list(self.slices), :, list(range(len(self.slices)))])

    def _blocks(self, lora_B: Tensor) -> Tensor:
        k, width, r = self.lora_B.shape
        return lora_B.reshape(self.slice_count, width, k, r)


class PrincipalLowRank(nn.Module):
    """PiSSA without touching the base: `B A - B0 A0`. A, A0 (r, n); B, B0 (m, r); A0 and B0 are buffers.

    PEFT puts `W - scaling · B0 A0` into the base in place; here that subtraction is part of the adapter, so
    that the function and the gradients of A and B are the same while W stays as it is (Meng et al. 2024,
    arXiv:2404.02948, section 3; appendix on the conversion to LoRA of rank 2 r).
    """

    start_A: Tensor  # noqa: N815
    start_B: Tensor  # noqa: N815

    def __init__(self, settings: Settings, lora_A: Tensor, lora_B: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.register_buffer("start_A", lora_A.clone(), persistent=False)
        self.register_buffer("start_B", lora_B.clone(), persistent=False)

    @property
    def rank(self) -> int:
        """The rank of `factors()`: 2 r."""
        return 2 * self.settings.r

    def factors(self) -> tuple[Tensor, Tensor]:
        """[A; A0] (2 r, n) and [B, -B0] (m, 2 r)."""
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)

    @torch.no_grad()
    def load_factors_(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Take over factors of rank 2 r as `factors()` gives them.

        Of rank r, as PEFT writes a PiSSA adapter that it has not converted: A and B alone; A0 and B0 stay the
        singular vectors of the base.
        """
        r = self.settings.r
        self.lora_A.copy_(lora_A[:r])
        self.lora_B.copy_(lora_B[:, :r])
        if lora_A.shape[0] == 2 * r:
            self.start_A.copy_(lora_A[r:])
            self.start_B.copy_(-lora_B[:, r:])


LowRankForm = LowRank | SlicedLowRank | PrincipalLowRank
