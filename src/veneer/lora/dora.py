"""DoRA: an adapter that trains the length of each output's weights apart from their direction.

    W' = g ⊙ V    V = W + scaling · B A    g = magnitude / ‖V‖, one number for each of the m outputs

Liu et al. 2024, arXiv:2402.09353: equation 5; ‖V‖ follows A and B but gets no gradient (section 4.3). The change
W' - W is not of low rank, so that a Dora has no `factors()` as the forms of `veneer.lora.low_rank` have.

This file must not know layers, models or names.

r rank, n inputs (rows of an embedding), m outputs (its width).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veneer.lora.autograd import lora_linear
from veneer.lora.low_rank import LowRankForm, Settings

__all__ = ["Dora", "LayerAdapter", "dora_change", "dora_linear"]


@dataclass(frozen=True)
class _KeptNorm:
    """‖V‖, and what it was computed from."""

    norm: Tensor
    A: Tensor
    B: Tensor
    """Copies: a fused optimiser changes the originals without a trace."""
    weight: Tensor
    """The frozen weight itself, so that its memory stays its own."""
    version: int

    def is_of(self, weight: Tensor, lora_A: Tensor, lora_B: Tensor) -> bool:
        """Whether nothing has changed since."""
        place, now = ((w.data_ptr(), w.dtype, w.device, w.shape, w.stride()) for w in (self.weight, weight))
        return (
            place == now
            and self.version == weight._version
            and (self.A.device, self.A.dtype) == (lora_A.device, lora_A.dtype)
            and torch.equal(self.A, lora_A)
            and torch.equal(self.B, lora_B)
        )


class Dora(nn.Module):
    """A (r, n), B (m, r) and the magnitude (m,), all trained."""

    def __init__(self, settings: Settings, lora_A: Tensor, lora_B: Tensor, weight: Tensor) -> None:
        """The magnitude starts as ‖weight + scaling · B A‖ of the base's weight (m, n): W' = V."""
        super().__init__()
        self.settings = settings
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self._kept: _KeptNorm | None = None
        self.lora_magnitude_vector = nn.Parameter(self.norm(weight).clone())

    @property
    def rank(self) -> int:
        """The rank of B A."""
        return self.settings.r

    def direction(self) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r), which turn the direction V. They are not the whole change."""
        return self.lora_A, self.lora_B

    @torch.no_grad()
    def load_factors_(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Take over the values of A (r, n) and B (m, r)."""
        self.lora_A.copy_(lora_A)
        self.lora_B.copy_(lora_B)

    def scale(self, weight: Tensor) -> Tensor:
        """g (m,) for the base's weight (m, n); differentiable in the magnitude only."""
        return self.lora_magnitude_vector / self.norm(weight)

    def norm(self, weight: Tensor) -> Tensor:
        """‖V‖ (m,) for the base's weight (m, n), in fp32 (fp64); 1 where V is zero, so that nothing is infinite.

        Kept while gradients are off, until A, B or the weight changes. (A frozen weight whose values are written
        through `.data` changes unseen; switching to training and back forgets what was kept.)
        """
        if torch.is_grad_enabled() or weight.is_meta or weight.is_inference():
            return self._norm(weight)
        A, B = self.lora_A.detach(), self.lora_B.detach()
        if self._kept is None or not self._kept.is_of(weight, A, B):
            self._kept = _KeptNorm(self._norm(weight), A.clone(), B.clone(), weight.detach(), weight._version)
        return self._kept.norm

    def delta(self, weight: Tensor) -> Tensor:
        """W' - W (m, n), in fp32 (fp64)."""
        V = self._turned(weight)
        return self.scale(weight)[:, None] * V - weight

    def train(self, mode: bool = True) -> Dora:
        """Switch between training and evaluation."""
        self._kept = None
        return super().train(mode)

    @torch.no_grad()
    def _norm(self, weight: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(self._turned(weight), dim=1)  # (m,)
        return norm if norm.is_meta else torch.where(norm > 0, norm, 1.0)

    def _turned(self, weight: Tensor) -> Tensor:
        """V (m, n)."""
        return torch.addmm(
            weight.to(self.lora_A.dtype), self.lora_B, self.lora_A, alpha=self.settings.scaling
        )


LayerAdapter = LowRankForm | Dora
"""What one adapter holds in one layer."""


def dora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, pair: Dora, *, transposed: bool) -> Tensor:
    """`g ⊙ (x V^T) + b`, (..., n) -> (..., m) in the dtype of x: one product with the base's weight.

    Args:
        x: (..., n).
        weight: (m, n), or (n, m) with `transposed` (Conv1D).
        bias: (m,) or None.
        pair: the adapter's tensors.
        transposed: the layout of `weight`.
    """
    u, y = _scaled(x, weight, pair, transposed)
    return (y if bias is None else y + bias).to(u.dtype)


def dora_change(
    x: Tensor, weight: Tensor, pair: Dora, *, dropout: float = 0.0, transposed: bool = False
) -> Tensor:
    """`g ⊙ (x V^T) - x W^T` with x dropped: what is added to an output x W^T + b that has been computed.

    With dropout PEFT drops the input of all that the adapter adds, and not the base's own product; so does this.
    """
    if dropout > 0.0:
        x = nn.functional.dropout(x, dropout)
    u, y = _scaled(x, weight, pair, transposed)
    return (y - nn.functional.linear(x, weight.t() if transposed else weight)).to(u.dtype)


def _scaled(x: Tensor, weight: Tensor, pair: Dora, transposed: bool) -> tuple[Tensor, Tensor]:
    """u = x V^T in the dtype of x, and g ⊙ u in that of g: g rounded to bf16 is 0.4 % off."""
    lora_A, lora_B = pair.direction()
    u = lora_linear(x, weight, None, lora_A, lora_B, pair.settings.scaling, transposed=transposed)  # (..., m)
    return u, u * pair.scale(weight.t() if transposed else weight)
