"""Sums of low-rank products, for one layer: exactly, cut to a rank, and with conflicts or repetitions thinned out.

    D = Σ w_i D_i    D_i = scaling_i · B_i A_i

Always of the products. A sum of the A's times a sum of the B's is something else: it has every A with every B.
Everything is computed in float64. This file must not know modules, adapters or configurations.

Shapes: r rank, R the sum of the ranks, n inputs, m outputs, k summands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cut", "Product", "concatenated", "cut_dense", "cut_pair", "dare", "dare_drop", "ties"]


@dataclass(frozen=True)
class Product:
    """`weight · scaling · B A`. A (r, n), B (m, r)."""

    A: Tensor
    B: Tensor
    scaling: float
    weight: float

    def dense(self) -> Tensor:
        """scaling · B A, (m, n) float64, without the weight."""
        return (self.B.double() @ self.A.double()) * self.scaling


@dataclass(frozen=True)
class Cut:
    """A low-rank pair near some D (m, n).

    Attributes:
        A: (r, n) float64. B: (m, r) float64.
        norm: ‖D‖_F.
        lost: ‖D - B A‖_F, from the singular values that were cut.
    """

    A: Tensor
    B: Tensor
    norm: float
    lost: float


def concatenated(products: Sequence[Product]) -> tuple[Tensor, Tensor]:
    """A (R, n) and B (m, R) whose product is `Σ weight · scaling · B A` exactly; float64."""
    A = torch.cat([p.A.double() for p in products])
    B = torch.cat([p.B.double() * (p.weight * p.scaling) for p in products], dim=1)
    return A, B


def cut_pair(A: Tensor, B: Tensor, r: int) -> Cut:
    """The nearest product of rank r (Eckart & Young 1936) to B A, without making the (m, n) matrix.

    B = Q_B T_B and Aᵀ = Q_A T_A, so that the singular values of B A are those of the (R, R) matrix T_B T_Aᵀ.
    """
    Q_B, T_B = torch.linalg.qr(B)  # (m, min(m, R)), (min(m, R), R)
    Q_A, T_A = torch.linalg.qr(A.t())  # (n, min(n, R)), (min(n, R), R)
    U, S, V_t = torch.linalg.svd(T_B @ T_A.t(), full_matrices=False)
    return _cut(Q_B @ U, S, V_t @ Q_A.t(), r)


def cut_dense(D: Tensor, r: int) -> Cut:
    """The nearest product of rank r to D (m, n)."""
    U, S, V_t = torch.linalg.svd(D.double(), full_matrices=False)
    return _cut(U, S, V_t, r)


def ties(deltas: Sequence[Tensor], density: float) -> Tensor:
    """TIES of weighted deltas w_i D_i, each (m, n): trim, elect a sign, mean of those that agree.

    Yadav et al. 2023, arXiv:2306.01708, section 4 and algorithm 1, for one layer at a time (the paper trims all layers
    together; PEFT and mergekit one by one). A weight counts in the election too: an adapter of weight 0 has no vote.

    Args:
        deltas: k matrices.
        density: share of each matrix's entries, the largest, that is kept; in (0, 1].
    """
    trimmed = torch.stack([_largest(D, density) for D in deltas])  # (k, m, n)
    elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0).to(trimmed)
    agrees = trimmed.sign() == elected
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def dare(deltas: Sequence[Tensor], density: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The sum of weighted deltas w_i D_i (m, n) of which each entry is dropped with probability 1 - density, the
    others divided by density.

    Yu et al. 2023, arXiv:2311.03099, section 3: drop and rescale, then the sum ("task arithmetic").
    """
    return torch.stack(
        [dare_drop(D, density, generator) for D, generator in zip(deltas, generators, strict=True)]
    ).sum(0)


def dare_drop(D: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """One delta dropped and rescaled."""
    return D * torch.bernoulli(torch.full_like(D, density), generator=generator) / density


def _largest(D: Tensor, density: float) -> Tensor:
    """D with all but its `density` share of largest entries set to zero."""
    kept = int(density * D.numel())
    flat = D.reshape(-1)
    mask = torch.zeros_like(flat)
    mask[flat.abs().topk(kept).indices] = 1.0
    return (flat * mask).reshape(D.shape)


def _cut(U: Tensor, S: Tensor, V_t: Tensor, r: int) -> Cut:
    root = S[:r].sqrt()
    norm, lost = (math.sqrt(float(values.square().sum())) for values in (S, S[r:]))
    return Cut(A=root[:, None] * V_t[:r], B=U[:, :r] * root, norm=norm, lost=lost)
