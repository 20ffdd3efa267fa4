"""What fine-tuning changed: the difference of two full models, layer by layer, by singular values.

D = W_tuned - W_base = U S Vᵀ. Cut after r singular values it is the closest matrix of rank r there is, and
those that were cut say how far it is off (Eckart & Young 1936, "The approximation of one matrix by another of
lower rank", Psychometrika 1):

    ‖D - U_r S_r V_rᵀ‖_F = sqrt(s²_{r+1} + s²_{r+2} + ...)

The work is done once; the result answers for every r. What no low-rank pair can carry (biases, norms) is
listed with its size, never dropped. This file knows no file format and no particular model.

Shapes: n inputs and m outputs of a layer, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from veneer.errors import BaseError, ConfigError
from veneer.lora.layers import Layout, layout_of
from veneer.lora.matching import under

__all__ = ["Difference", "LayerDifference", "Method", "Unrepresented", "difference"]

Method = Literal["exact", "randomized"]

_OVERSAMPLED = 16  # singular values that the randomized method computes beyond those kept, for accuracy
_ITERATIONS = 4  # of its subspace iteration

_NO_LAYER = "not the weight of a layer that can have an adapter"
_AN_EMBEDDING = "an embedding; embeddings=False"


@dataclass(frozen=True)
class LayerDifference:
    """The difference D of one layer's weight, as (m, n) whatever the layout, by singular values.

    Attributes:
        name: of the module.
        layout: how the module stores its weight.
        norm: ‖D‖_F.
        base_norm: ‖W_base‖_F, to compare with.
        singular_values: float64, falling; all min(m, n), or with the randomized method the first max_r.
        U: (m, kept) float32.
        V_t: (kept, n) float32.
    """

    name: str
    layout: Layout
    norm: float
    base_norm: float
    singular_values: Tensor
    U: Tensor
    V_t: Tensor

    @property
    def full_rank(self) -> int:
        """min(m, n): the rank that represents any difference."""
        return min(self.U.shape[0], self.V_t.shape[1])

    def squared_error(self, r: int) -> float:
        """‖D - U_r S_r V_rᵀ‖_F².

        Raises:
            ConfigError: the randomized method did not compute as many singular values.
        """
        S = self.singular_values
        if len(S) == self.full_rank:
            return float(S[r:].square().sum())
        if r > len(S):
            raise ConfigError(
                f"{self.name}: rank {r} is asked for, and {len(S)} singular values were computed. Raise "
                "max_r, or use method='exact'."
            )
        return max(0.0, self.norm**2 - float(S[:r].square().sum()))

    def error(self, r: int) -> float:
        """‖D - U_r S_r V_rᵀ‖_F / ‖D‖_F: 1 for nothing represented, 0 for all of it."""
        return math.sqrt(self.squared_error(r)) / self.norm

    def lowest_r(self, max_error: float) -> int:
        """The lowest r, at least 1, with `error(r) <= max_error`. Raises ConfigError as `error` does."""
        ranks = range(1, self.full_rank + 1)
        return next((r for r in ranks if self.error(r) <= max_error), self.full_rank)

    def pair(self, r: int) -> tuple[Tensor, Tensor]:
        """A (r, n) = √S_r V_rᵀ and B (m, r) = U_r √S_r, float32.

        Raises:
            ConfigError: more singular vectors are asked for than were kept.
        """
        if r > self.U.shape[1]:
            raise ConfigError(
                f"{self.name}: rank {r} is asked for, and {self.U.shape[1]} singular vectors were kept. "
                "Raise max_r."
            )
        root = self.singular_values[:r].sqrt().to(self.U)  # (r,)
        return root[:, None] * self.V_t[:r], self.U[:, :r] * root


@dataclass(frozen=True)
class Unrepresented:
    """A tensor that differs and that no low-rank pair carries.

    Attributes:
        name: its key in the state dict.
        norm: Frobenius norm of the difference.
        base_norm: Frobenius norm of the base's tensor.
        reason: why, in words for the user.
    """

    name: str
    norm: float
    base_norm: float
    reason: str


@dataclass(frozen=True)
class Difference:
    """All that differs between two models; ask it for any rank.

    Attributes:
        layers: those whose difference a low-rank pair can carry, in the model's order.
        unrepresented: the other tensors that differ.
        unchanged: state-dict keys of the tensors that are the same.
        modules_to_save: as given.
        saved: state-dict key -> the tuned model's tensor, for all of `modules_to_save`.
    """

    layers: tuple[LayerDifference, ...]
    unrepresented: tuple[Unrepresented, ...]
    unchanged: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    saved: Mapping[str, Tensor]

    def error(self, r: int | Mapping[str, int]) -> float:
        """sqrt(Σ ‖D - D_r‖_F²) / sqrt(Σ ‖D‖_F²) over all layers, for one r or one a layer; 0 without any."""
        ranks = self.ranks(r)
        squared = sum(layer.squared_error(ranks[layer.name]) for layer in self.layers)
        return math.sqrt(squared / sum(layer.norm**2 for layer in self.layers)) if self.layers else 0.0

    def errors(self, ranks: Sequence[int]) -> dict[str, list[float]]:
        """Module name -> its relative error at each of these ranks."""
        return {layer.name: [layer.error(min(r, layer.full_rank)) for r in ranks] for layer in self.layers}

    def lowest_r(self, max_error: float) -> int:
        """The lowest r, the same for every layer, with `error(r) <= max_error`, a fraction in [0, 1]."""
        _check_error(max_error)
        highest = max((layer.full_rank for layer in self.layers), default=1)
        return next((r for r in range(1, highest + 1) if self.error(r) <= max_error), highest)

    def lowest_ranks(self, max_error: float) -> dict[str, int]:
        """Module name -> the lowest r with which that layer's own error is at most `max_error`, in [0, 1]."""
        _check_error(max_error)
        return {layer.name: layer.lowest_r(max_error) for layer in self.layers}

    def ranks(self, r: int | Mapping[str, int]) -> dict[str, int]:
        """Module name -> r, or that layer's r, but no more than the layer's full rank.

        Raises:
            ConfigError: r below 1, or a layer without one.
        """
        chosen: dict[str, int] = {}
        for layer in self.layers:
            rank = r.get(layer.name) if isinstance(r, Mapping) else r
            if rank is None or rank < 1:
                raise ConfigError(f"{layer.name} is given the rank {rank}. Every layer needs at least 1.")
            chosen[layer.name] = min(rank, layer.full_rank)
        return chosen


def difference(
    base: nn.Module,
    tuned: nn.Module | Mapping[str, Tensor],
    *,
    embeddings: bool = False,
    modules_to_save: Sequence[str] = (),
    max_r: int | None = None,
    method: Method = "exact",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Difference:
    """Take apart what differs between a base and a model that was fine-tuned from it. Neither is changed.

    Args:
        base: the base; the types of its modules say how each weight is stored.
        tuned: the tuned model, or its state dict.
        embeddings: also take apart the weights of `nn.Embedding`.
        modules_to_save: full names of modules whose tuned tensors are kept whole (a classifier's head); the base may
            lack them, or have other shapes there.
        max_r: keep only so many singular vectors a layer, to save memory; default all.
        method: "exact" is the full decomposition; "randomized" computes only the first max_r singular values,
            nearly the largest, for matrices too large for the full one (Halko et al. 2011, arXiv:0909.4061).
        dtype: of the subtraction and the decomposition; float32 takes about half the time and finds singular
            values to about 1e-7 of the largest.
        seed: of the randomized method.

    Raises:
        BaseError: the two models do not have the same tensors, or one is not finite; every fault is listed.
        ConfigError: max_r below 1, or the randomized method without a max_r.
    """
    if (max_r is not None and max_r < 1) or (method == "randomized" and max_r is None):
        raise ConfigError(
            f"{max_r=} with {method=}. Expected at least 1; the randomized method needs a number."
        )
    before = base.state_dict()
    after = _aligned(before, tuned.state_dict() if isinstance(tuned, nn.Module) else tuned, modules_to_save)
    layers: list[LayerDifference] = []
    unrepresented: list[Unrepresented] = []
    unchanged: list[str] = []
    for key, old in before.items():
        new = after[key].to(old.device) if key in after else old
        if under(key, modules_to_save):
            continue
        if torch.equal(old, new):
            unchanged.append(key)
            continue
        D, base_norm = new.to(dtype) - old.to(dtype), float(old.to(dtype).norm())
        name, _, leaf = key.rpartition(".")
        layout = layout_of(base.get_submodule(name)) if leaf == "weight" else None
        if layout is None or (layout is Layout.EMBEDDING and not embeddings):
            reason = _NO_LAYER if layout is None else _AN_EMBEDDING
            unrepresented.append(Unrepresented(key, float(D.norm()), base_norm, reason))
            continue
        D = D if layout is Layout.LINEAR else D.t()  # (m, n)
        U, S, V_t = _decomposed(D, max_r, method, seed)
        layers.append(LayerDifference(name, layout, float(D.norm()), base_norm, S, U, V_t))
    saved = {key: tensor.detach().clone() for key, tensor in after.items() if under(key, modules_to_save)}
    return Difference(tuple(layers), tuple(unrepresented), tuple(unchanged), tuple(modules_to_save), saved)


def _aligned(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], modules_to_save: Sequence[str]
) -> dict[str, Tensor]:
    """The tuned tensors, with those added that a file leaves out because they are tied to another.

    Checked: outside `modules_to_save` the same keys and shapes as the base's; everything finite.
    """
    tied = {old.data_ptr(): after[key] for key, old in before.items() if key in after and old.numel()}
    filled = {key: tied[old.data_ptr()] for key, old in before.items() if old.data_ptr() in tied} | dict(
        after
    )
    faults = [
        f"modules_to_save names {root!r}, which is not in the tuned model"
        for root in modules_to_save
        if not any(under(key, [root]) for key in after)
    ]
    missing = [key for key in before if key not in filled and not under(key, modules_to_save)]
    faults += [f"{key} is missing from the tuned model" for key in missing]
    for key, new in filled.items():
        old = before.get(key)
        if not new.isfinite().all() or not (old is None or old.isfinite().all()):
            faults.append(f"{key} holds values that are not finite")
        if under(key, modules_to_save):
            continue
        if old is None:
            faults.append(f"{key} is not in the base")
        elif old.shape != new.shape:
            faults.append(f"{key} has shape {tuple(new.shape)}; the base's has {tuple(old.shape)}")
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise BaseError(
            "The two models can't be compared. Give the base that the other was tuned from, and name a head "
            f"that was replaced in modules_to_save.{listed}"
        )
    return filled


def _decomposed(D: Tensor, max_r: int | None, method: Method, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, kept) float32, the computed singular values float64, V_t (kept, n) float32 of D (m, n)."""
    if method == "randomized" and max_r is not None and max_r + _OVERSAMPLED < min(D.shape):
        with torch.random.fork_rng(devices=[D.device] if D.is_cuda else []):
            torch.manual_seed(seed)
            U, S, V = torch.svd_lowrank(D, max_r + _OVERSAMPLED, niter=_ITERATIONS)
        S, V_t = S[:max_r], V.t()
    else:
        U, S, V_t = torch.linalg.svd(D, full_matrices=False)
    # cloned where cut: a view would keep the whole in memory
    return U[:, :max_r].float().clone(), S.double(), V_t[:max_r].float().clone()


def _check_error(max_error: float) -> None:
    if not 0.0 <= max_error <= 1.0:
        raise ConfigError(f"max_error={max_error!r} can't be used: expected a fraction from 0 to 1.")
