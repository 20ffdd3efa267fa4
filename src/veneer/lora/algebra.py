"""A new adapter out of several on one model: the weighted sum of what they add to each weight.

    combine(model, {"polite": 0.7, "short": 0.3}, method="svd", r=16)

"concat" is the sum itself (the ranks add up), "svd" the nearest of a wanted rank, "ties" and "dare" thin the summands
out first. The summands are the products scaling · B A, never A and B apart; ranks, scalings and targets may differ.
`veneer.lora.products` has the mathematics of one layer. This file must not know tasks or files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError, nearest
from veneer.lora.attach import attach
from veneer.lora.config import Bias, LoraConfig
from veneer.lora.dora import Dora
from veneer.lora.heads import combined_heads
from veneer.lora.init import generator_for
from veneer.lora.products import Cut, Product, concatenated, cut_dense, cut_pair, dare, ties
from veneer.lora.state import AdapterRecord, require_adapter, require_adapters
from veneer.naming import setting

__all__ = ["CombineMethod", "Combined", "combine"]

CombineMethod = Literal["concat", "svd", "ties", "dare"]


@dataclass(frozen=True)
class Combined:
    """What `combine` made.

    Attributes:
        name: of the new adapter, which is active now.
        weights: adapter -> its weight.
        method: how.
        config: the new adapter's; its scaling is 1 everywhere.
        ranks: module name -> rank.
        errors: module name -> ‖D - B A‖_F / ‖D‖_F, where D is what the method asks for; 0 for "concat".
        error: the same over all layers together.
    """

    name: str
    weights: Mapping[str, float]
    method: CombineMethod
    config: LoraConfig
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float


def combine(
    model: nn.Module,
    weights: Mapping[str, float],
    *,
    name: str = "combined",
    method: CombineMethod = "concat",
    r: int | None = None,
    density: float | None = None,
    seed: int = 0,
    heads: str = "same",
) -> Combined:
    """Attach the weighted sum of adapters of `model` as a new adapter, in place, and make it the active one.

    Biases that were trained are summed as changes too: `b + Σ w_i (b_i - b)`.

    Args:
        model: has all of them attached; they stay as they are.
        weights: adapter name -> factor, any finite number but not all 0.
        name: of the new adapter.
        method: "concat", exact, of rank Σ r_i; "svd", nearest of rank r; "ties" (arXiv:2306.01708) and "dare"
            (arXiv:2311.03099), nearest of rank r to a sum that is no product of low rank any more.
        r: the rank, at most; needed for "svd"; default for "ties" and "dare": the sum of the ranks.
        density: share of the entries that "ties" and "dare" keep, in (0, 1].
        seed: of what "dare" drops.
        heads: what becomes of whole modules (`modules_to_save`). "same": they have to be equal; "mean": the weighted
            mean, the weights divided by their sum; or the name of the adapter whose modules are taken.

    Raises:
        ConfigError: unknown names, options that don't go together, heads that differ, DoRA adapters (their change is
            no product), a merged model.
    """
    _check_options(weights, method, r, density)
    records = [require_adapter(model, each) for each in weights]
    _check_low_rank(records)
    whole = combined_heads(records, list(weights.values()), heads)
    layers = list(dict.fromkeys(layer for record in records for layer in record.layers))
    cuts = {
        layer: _layer(layer, records, list(weights.values()), method, r, density, seed) for layer in layers
    }
    kinds: list[Bias] = [record.config.bias for record in records]
    config = _config({layer: cut.A.shape[0] for layer, cut in cuts.items()}, kinds, whole)
    biases = _biases(model, records, list(weights.values()))
    attach(model, config, name=name, seed=seed, strict=False)
    _fill_(require_adapter(model, name), cuts, whole, biases)
    norm = math.sqrt(sum(cut.norm**2 for cut in cuts.values()))
    return Combined(
        name=name,
        weights=dict(weights),
        method=method,
        config=config,
        ranks={layer: cut.A.shape[0] for layer, cut in cuts.items()},
        errors={layer: cut.lost / cut.norm if cut.norm else 0.0 for layer, cut in cuts.items()},
        error=math.sqrt(sum(cut.lost**2 for cut in cuts.values())) / norm if norm else 0.0,
    )


def _check_options(weights: Mapping[str, float], method: str, r: int | None, density: float | None) -> None:
    methods = get_args(CombineMethod)
    if method not in methods:
        raise ConfigError(
            f"{_method(method)} is not known: expected {', '.join(methods)}. {nearest(method, methods)}".rstrip()
        )
    if not any(weights.values()) or not all(map(math.isfinite, weights.values())):
        raise ConfigError(
            f"The weights {dict(weights)} can't be used: expected finite numbers, at least one of them not 0."
        )
    thins = method in ("ties", "dare")
    if method == "svd" and r is None:
        raise ConfigError(
            f"{_method('svd')} needs a rank: give {setting('combine.r')}. ({_method('concat')} is exact and "
            "needs none.)"
        )
    if method == "concat" and r is not None:
        raise ConfigError(
            f"{_method('concat')} has the sum of the ranks; {setting('combine.r', r)} goes with {_method('svd')}."
        )
    if r is not None and r < 1:
        raise ConfigError(f"{setting('combine.r', r)} can't be used: expected a rank of at least 1.")
    if thins and density is None:
        raise ConfigError(
            f"{_method(method)} needs {setting('combine.density')}: the share of entries to keep, such as 0.5."
        )
    if not thins and density is not None:
        raise ConfigError(
            f"{setting('combine.density', density)} goes with {_method('ties')} or 'dare', not with {method!r}."
        )
    if density is not None and not 0.0 < density <= 1.0:
        raise ConfigError(
            f"{setting('combine.density', density)} can't be used: expected a share above 0, at most 1."
        )


def _method(name: str) -> str:
    return setting("combine.method", repr(name))


def _check_low_rank(records: Sequence[AdapterRecord]) -> None:
    dora = [record.name for record in records if record.config.use_dora]
    if dora:
        raise ConfigError(
            f"{' and '.join(map(repr, dora))}: a DoRA adapter rescales the base's weights, so that its change is no "
            "product that could be summed. Merge it into a model of its own instead."
        )


def _layer(
    layer: str,
    records: Sequence[AdapterRecord],
    weights: Sequence[float],
    method: CombineMethod,
    r: int | None,
    density: float | None,
    seed: int,
) -> Cut:
    """The combination in one layer, on the CPU; adapters that don't have the layer add nothing there."""
    products, generators = [], []
    for record, weight in zip(records, weights, strict=True):
        if layer in record.layers:
            pair = record.layers[layer].pair(record.name)
            assert not isinstance(pair, Dora)
            A, B = (factor.detach().cpu() for factor in pair.factors())
            products.append(Product(A, B, pair.settings.scaling, weight))
            generators.append(generator_for(seed, f"{layer}.{record.name}.dare"))
    A, B = concatenated(products)
    if method == "concat":
        return Cut(A, B, norm=float((B.t() @ B * (A @ A.t())).sum().clamp(min=0).sqrt()), lost=0.0)
    if method == "svd":
        assert r is not None
        return cut_pair(A, B, r)
    assert density is not None
    deltas = [product.dense() * product.weight for product in products]
    D = ties(deltas, density) if method == "ties" else dare(deltas, density, generators)
    return cut_dense(D, A.shape[0] if r is None else r)


def _config(ranks: Mapping[str, int], kinds: Sequence[Bias], whole: Mapping[str, object]) -> LoraConfig:
    """lora_alpha = r everywhere: the scaling is 1, and the weights are in B."""
    r = Counter(ranks.values()).most_common(1)[0][0]
    own = {layer: rank for layer, rank in ranks.items() if rank != r}
    bias: Bias = "all" if "all" in kinds else "lora_only" if "lora_only" in kinds else "none"
    return LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=tuple(ranks),
        rank_pattern=own,
        alpha_pattern=dict(own),
        bias=bias,
        modules_to_save=tuple(whole) or None,
    )


def _biases(
    model: nn.Module, records: Sequence[AdapterRecord], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Name -> b + Σ w_i (b_i - b), float64, for every bias that one of the adapters trains."""
    state = require_adapters(model)
    found: dict[str, Tensor] = {}
    state.hide_()
    try:
        for record, weight in zip(records, weights, strict=True):
            for bias in record.biases:
                own = bias.owner._parameters["bias"]
                assert own is not None
                base = own.detach().double()
                change = (bias.copy.detach().double().to(base.device) - base) * weight
                found[bias.name] = found.get(bias.name, base) + change
    finally:
        state.show_()
    return found


@torch.no_grad()
def _fill_(
    record: AdapterRecord,
    cuts: Mapping[str, Cut],
    whole: Mapping[str, Mapping[str, Tensor]],
    biases: Mapping[str, Tensor],
) -> None:
    """Give the new adapter its values."""
    for layer_name, layer in record.layers.items():
        cut = cuts[layer_name]
        layer.pair(record.name).load_factors_(cut.A, cut.B)
    for module in record.saved:
        module.copy.load_state_dict(dict(whole[module.name]))
    for bias in record.biases:
        if bias.name in biases:
            bias.copy.copy_(biases[bias.name])
