"""A LoRA adapter out of two full models: the best low-rank form of what fine-tuning changed.

The difference D = W_tuned - W_base of each adaptable layer is taken apart by singular values, D = U S Vᵀ. Cut
after r of them it is the closest matrix of rank r there is, and the values that were cut say how far it is
off (Eckart & Young 1936, "The approximation of one matrix by another of lower rank", Psychometrika 1):

    B = U_r √S_r    A = √S_r V_rᵀ    ‖D - B A‖_F = sqrt(s²_{r+1} + s²_{r+2} + ...)

`difference` does the work once; its result answers for every r. What no low-rank pair can carry (biases,
norms) is listed with its size, never dropped. This file knows no file format and no particular model.

Shapes: n inputs and m outputs of a layer, r rank, k = min(n, m).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from veneer.errors import BaseError, ConfigError, TargetError
from veneer.lora.config import LoraConfig
from veneer.lora.layers import Layout, layout_of
from veneer.lora.matching import under

__all__ = ["Difference", "ExtractedLora", "LayerDifference", "Unrepresented", "difference", "extract_lora"]

Method = Literal["exact", "randomized"]

_OVERSAMPLED = 16  # singular values that the randomized method computes beyond those kept, for accuracy
_ITERATIONS = 4  # of its subspace iteration


@dataclass(frozen=True)
class LayerDifference:
    """The difference of one layer's weight, as (m, n) whatever the layout, by singular values.

    Attributes:
        name: of the module.
        layout: how the module stores its weight.
        norm: ‖D‖_F.
        base_norm: ‖W_base‖_F, to compare with.
        singular_values: (k,) float64, falling; with the randomized method only as many as were computed.
        U, V_t: (m, kept) and (kept, n) float32, the singular vectors.
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
        """k = min(n, m): the rank that represents any difference."""
        return min(self.U.shape[0], self.V_t.shape[1])

    def squared_error(self, r: int) -> float:
        """‖D - B A‖_F² of the best pair of rank r.

        Raises:
            ConfigError: the randomized method did not compute as many singular values.
        """
        S = self.singular_values
        if len(S) == self.full_rank:
            return float(S[r:].square().sum())
        if r > len(S):
            raise ConfigError(
                f"{self.name}: r={r}, but only {len(S)} singular values were computed. Raise max_r, or use "
                "method='exact'."
            )
        return max(0.0, self.norm**2 - float(S[:r].square().sum()))

    def error(self, r: int) -> float:
        """‖D - B A‖_F / ‖D‖_F of the best pair of rank r: 1 for nothing represented, 0 for all of it."""
        return math.sqrt(self.squared_error(r)) / self.norm

    def lowest_r(self, max_error: float) -> int:
        """The lowest r, at least 1, with `error(r) <= max_error`. Raises ConfigError as `squared_error`
        does.
        """
        return next(
            r for r in range(1, self.full_rank + 1) if self.error(r) <= max_error or r == self.full_rank
        )

    def factors(self, r: int) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r) float32 with B A = the best form of rank r, √S on both sides.

        Raises:
            ConfigError: more singular vectors are asked for than were kept.
        """
        if r > self.U.shape[1]:
            raise ConfigError(
                f"{self.name}: r={r}, but only {self.U.shape[1]} singular vectors were kept. Raise max_r."
            )
        root = self.singular_values[:r].sqrt().to(self.U.dtype)  # (r,)
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
class ExtractedLora:
    """An adapter out of two models, and how far it is off.

    Attributes:
        config: what to attach; its scaling is 1 for every layer.
        lora_A, lora_B: module name -> (r, n) and (m, r) float32.
        saved: state-dict key -> the tuned model's tensor, for `modules_to_save`.
        errors: module name -> ‖D - B A‖_F / ‖D‖_F.
        error: the same over all layers together.
        unrepresented: what else differs.
    """

    config: LoraConfig
    lora_A: Mapping[str, Tensor]
    lora_B: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]
    errors: Mapping[str, float]
    error: float
    unrepresented: tuple[Unrepresented, ...]
    layouts: Mapping[str, Layout]

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors under PEFT's keys, for `load_adapter_state_dict` or an adapter file."""
        state: dict[str, Tensor] = {}
        for name, layout in self.layouts.items():
            embedding = layout is Layout.EMBEDDING
            for letter, tensor in (("A", self.lora_A[name]), ("B", self.lora_B[name])):
                leaf = f"lora_embedding_{letter}" if embedding else f"lora_{letter}.weight"
                state[f"base_model.model.{name}.{leaf}"] = tensor.contiguous()
        return state | {f"base_model.model.{key}": tensor.contiguous() for key, tensor in self.saved.items()}


@dataclass(frozen=True)
class Difference:
    """All that differs between two models, taken apart once; ask it for any rank.

    Attributes:
        layers: those whose difference a low-rank pair can carry, in the model's order.
        unrepresented: the other tensors that differ.
        unchanged: state-dict keys of the tensors that are the same.
        saved: state-dict key -> the tuned model's tensor, for `modules_to_save`.
        modules_to_save: as given.
    """

    layers: tuple[LayerDifference, ...]
    unrepresented: tuple[Unrepresented, ...]
    unchanged: tuple[str, ...]
    saved: Mapping[str, Tensor]
    modules_to_save: tuple[str, ...] = ()

    def error(self, r: int | Mapping[str, int]) -> float:
        """sqrt(Σ ‖D - B A‖_F²) / sqrt(Σ ‖D‖_F²) over the layers, for one r or one r a layer; 0 without
        layers.
        """
        ranks = self._ranks(r)
        squared = sum(layer.squared_error(ranks[layer.name]) for layer in self.layers)
        return math.sqrt(squared / sum(layer.norm**2 for layer in self.layers)) if self.layers else 0.0

    def errors(self, ranks: Sequence[int]) -> dict[str, list[float]]:
        """Module name -> its relative error at each of these ranks; the key "" has the error over all
        layers.
        """
        table = {layer.name: [layer.error(min(r, layer.full_rank)) for r in ranks] for layer in self.layers}
        return {"": [self.error(r) for r in ranks]} | table

    def lowest_r(self, max_error: float) -> int:
        """The lowest r, the same for all layers, with `error(r) <= max_error`, a fraction in [0, 1]."""
        _check_error(max_error)
        highest = max((layer.full_rank for layer in self.layers), default=1)
        return next(r for r in range(1, highest + 1) if self.error(r) <= max_error or r == highest)

    def lowest_ranks(self, max_error: float) -> dict[str, int]:
        """Module name -> the lowest r with which that layer's own error is at most `max_error`, in [0, 1]."""
        _check_error(max_error)
        return {layer.name: layer.lowest_r(max_error) for layer in self.layers}

    def adapter(self, r: int | Mapping[str, int]) -> ExtractedLora:
        """The adapter of rank r, or of one rank a layer (as from `lowest_ranks`).

        A layer whose smaller side is below r has that side as its rank: its difference is represented whole.

        Raises:
            TargetError: the two models do not differ in any layer that can have an adapter.
            ConfigError: r below 1, a layer without a rank, or more singular vectors than were kept.
        """
        if not self.layers:
            raise TargetError(
                "No adaptable layer differs between the two models: there is nothing to extract. Check that the "
                "second is the tuned one."
            )
        ranks = self._ranks(r)
        factors = {layer.name: layer.factors(ranks[layer.name]) for layer in self.layers}
        return ExtractedLora(
            config=self._config(max(ranks.values()) if isinstance(r, Mapping) else r, ranks),
            lora_A={name: A for name, (A, _) in factors.items()},
            lora_B={name: B for name, (_, B) in factors.items()},
            saved=self.saved,
            errors={layer.name: layer.error(ranks[layer.name]) for layer in self.layers},
            error=self.error(ranks),
            unrepresented=self.unrepresented,
            layouts={layer.name: layer.layout for layer in self.layers},
        )

    def _config(self, r: int, ranks: Mapping[str, int]) -> LoraConfig:
        """Scaling 1 everywhere: lora_alpha = r, also where a layer's rank is another."""
        own = {name: rank for name, rank in ranks.items() if rank != r}
        return LoraConfig(
            r=r,
            lora_alpha=r,
            target_modules=tuple(ranks),
            rank_pattern=own,
            alpha_pattern=dict(own),
            modules_to_save=self.modules_to_save or None,
        )

    def _ranks(self, r: int | Mapping[str, int]) -> dict[str, int]:
        """The rank of each layer, at most its full rank."""
        without = [layer.name for layer in self.layers if isinstance(r, Mapping) and layer.name not in r]
        if without:
            raise ConfigError(f"No rank was given for {', '.join(without)}. Give every layer one.")
        ranks = {layer.name: r[layer.name] if isinstance(r, Mapping) else r for layer in self.layers}
        for name, rank in ranks.items():
            if rank < 1:
                raise ConfigError(f"r={rank} was given for {name}. Expected a rank of at least 1.")
        return {layer.name: min(ranks[layer.name], layer.full_rank) for layer in self.layers}


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
        base: the base; its module types tell how each weight is stored. tuned: the tuned model, or its state
        dict. embeddings: also represent differences of `nn.Embedding` weights by low-rank pairs.
        modules_to_save: names of modules whose tuned tensors are kept whole (a classifier's head). Their
        shapes
            may differ from the base's.
        max_r: keep only so many singular vectors a layer, to save memory; default all. method: "exact" is the
        full decomposition. "randomized" computes only the first max_r values, for matrices
            too large for the full one (Halko et al. 2011, arXiv:0909.4061); errors are then upper bounds of
            the best.
        dtype: of the subtraction and the decomposition; float32 takes half the time and finds singular values
        to about
            1e-7 of the largest.
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
    layers, unrepresented, unchanged = [], [], []
    for key, old in before.items():
        if under(key, modules_to_save):
            continue
        new = after[key]
        if torch.equal(old, new.to(old.device)):
            unchanged.append(key)
            continue
        W, D = old.to(dtype), new.to(old.device, dtype) - old.to(dtype)
        name, _, leaf = key.rpartition(".")
        layout = layout_of(base.get_submodule(name)) if leaf == "weight" else None
        if layout is None or (layout is Layout.EMBEDDING and not embeddings):
            reason = (
                "an embedding, and embeddings=False" if layout else "not the weight of an adaptable layer"
            )
            unrepresented.append(Unrepresented(key, float(D.norm()), float(W.norm()), reason))
            continue
        D = D if layout is Layout.LINEAR else D.t()  # (m, n)
        U, S, V_t = _decomposed(D, max_r, method, seed)
        norm = float(D.norm())
        layers.append(
            LayerDifference(name, layout, norm, float(W.norm()), S.double(), U.float(), V_t.float())
        )
    saved = {key: tensor.detach().clone() for key, tensor in after.items() if under(key, modules_to_save)}
    return Difference(tuple(layers), tuple(unrepresented), tuple(unchanged), saved, tuple(modules_to_save))


def extract_lora(
    base: nn.Module,
    tuned: nn.Module | Mapping[str, Tensor],
    r: int,
    *,
    embeddings: bool = False,
    modules_to_save: Sequence[str] = (),
    method: Method = "exact",
    dtype: torch.dtype = torch.float64,
) -> ExtractedLora:
    """The LoRA adapter of rank r nearest to the difference of two models; arguments and errors as
    `difference`.

    >>> adapter = extract_lora(base, tuned, r=16)  # doctest: +SKIP
    >>> attach(base, adapter.config)  # doctest: +SKIP
    >>> load_adapter_state_dict(base, adapter.state_dict())  # doctest: +SKIP
    """
    taken_apart = difference(
        base,
        tuned,
        embeddings=embeddings,
        modules_to_save=modules_to_save,
        max_r=r,
        method=method,
        dtype=dtype,
    )
    return taken_apart.adapter(r)


def _aligned(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], modules_to_save: Sequence[str]
) -> dict[str, Tensor]:
    """The tuned tensors under the base's keys; a key that a file left out as tied to another is filled in."""
    tied = {
        tensor.data_ptr(): after[key] for key, tensor in before.items() if key in after and tensor.numel()
    }
    found = {key: after.get(key, tied.get(tensor.data_ptr())) for key, tensor in before.items()}
    faults = []
    for root in modules_to_save:
        if not any(under(key, [root]) for key in after):
            faults.append(f"modules_to_save names {root!r}, which is not in the tuned model")
    for key, tensor in found.items():
        old = before[key]
        if under(key, modules_to_save):
            continue
        if tensor is None:
            faults.append(f"{key} is missing from the tuned model")
        elif tensor.shape != old.shape:
            faults.append(f"{key} has shape {tuple(tensor.shape)}; the base's has {tuple(old.shape)}")
        elif not (tensor.isfinite().all() and old.isfinite().all()):
            faults.append(f"{key} holds values that are not finite")
    extra = {key: tensor for key, tensor in after.items() if key not in before}
    faults += [f"{key} is not in the base" for key in extra if not under(key, modules_to_save)]
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise BaseError(
            "The two models can't be compared. Give the base that the other was tuned from, and name a replaced "
            f"head in modules_to_save.{listed}"
        )
    return {key: tensor for key, tensor in found.items() if tensor is not None} | extra


def _decomposed(D: Tensor, max_r: int | None, method: Method, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, kept), all computed singular values, V_t (kept, n) of D (m, n)."""
    if method == "randomized" and max_r is not None and max_r + _OVERSAMPLED < min(D.shape):
        with torch.random.fork_rng(devices=[D.device] if D.is_cuda else []):
            torch.manual_seed(seed)
            U, S, V = torch.svd_lowrank(D, max_r + _OVERSAMPLED, niter=_ITERATIONS)
        return U[:, :max_r], S[:max_r], V.t()[:max_r]
    U, S, V_t = torch.linalg.svd(D, full_matrices=False)
    return U[:, :max_r], S, V_t[:max_r]


def _check_error(max_error: float) -> None:
    if not 0.0 <= max_error <= 1.0:
        raise ConfigError(f"max_error={max_error!r} can't be used: expected a fraction from 0 to 1.")
