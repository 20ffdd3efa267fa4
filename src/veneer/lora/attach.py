"""Putting adapters on a model and taking them off, switching between them and turning them off.

    report = attach(model, LoraConfig(target_modules="all-linear"))
    ...
    detach(model)

Attaching works in place on the tree of modules: a layer is replaced by one that holds it. The base's weights
and the given configuration are never changed, and detaching puts back the very same objects and their
requires_grad. This file must not know tasks, files or any particular model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.lora.config import LoraConfig
from veneer.lora.counts import ParameterCount, count_parameters
from veneer.lora.init import draw_seed, init_embedding, init_linear, init_pissa
from veneer.lora.layers import AdaptedLayer, Layout, LoraEmbedding, LoraLinear, wrap
from veneer.lora.low_rank import LowRank, LowRankForm, PrincipalLowRank, Settings, SlicedLowRank
from veneer.lora.resolution import Resolution, Target
from veneer.lora.state import (
    AdapterRecord,
    ModelAdapters,
    adapters_of,
    put_,
    require_adapter,
    require_adapters,
    set_adapters_,
)
from veneer.lora.swap import SavedBias, SavedModule, copy_bias, copy_module
from veneer.lora.targets import base_modules, resolve_targets

__all__ = [
    "AttachReport",
    "active_adapters",
    "adapter_names",
    "adapter_parameters",
    "attach",
    "check_together",
    "detach",
    "disabled",
    "set_active",
]


@dataclass(frozen=True)
class AttachReport:
    """What `attach` did."""

    name: str
    config: LoraConfig
    resolution: Resolution
    parameters: ParameterCount
    """Of the whole model, with this adapter."""

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        return [f"adapter {self.name!r}", *self.resolution.lines(), str(self.parameters)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def attach(
    model: nn.Module,
    config: LoraConfig,
    *,
    name: str = "default",
    seed: int | None = None,
    freeze: bool = True,
    strict: bool = True,
) -> AttachReport:
    """Put an adapter on `model`, in place, and make it the active one.

    Args:
        model: any module with nn.Linear, Conv1D or nn.Embedding inside. May have other adapters already.
        config: what to adapt and how.
        name: letters, digits, `_` and `-`; not in use on this model.
        seed: makes the initial values reproducible whatever torch's random state is; None draws a seed from
            it.
        freeze: whether the base's own parameters stop requiring gradients until the last adapter is detached.
        strict: see `resolve_targets`.

    Raises:
        TargetError: a pattern that matches nothing, only some blocks, or what can't be adapted. Nothing is
            changed.
        ConfigError: a name that is in use or can't be used; a merged model.
    """
    state = adapters_of(model) or ModelAdapters()
    _check_name(name, state)
    _check_unmerged(state, "attach another adapter")
    resolution = resolve_targets(model, config, strict=strict)
    state.hide_()
    try:
        seed = draw_seed() if seed is None else seed
        record = _build(model, name, config, resolution, seed)
        if not state.adapters:
            state.flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
            if freeze:
                model.requires_grad_(False)
        _install_(model, record)
        state.adapters[name] = record
        state.active = (name,)
        set_adapters_(model, state)
        state.mark_trainable_()
    finally:
        state.show_()
    return AttachReport(name, config, resolution, count_parameters(model))


def detach(model: nn.Module, name: str = "default") -> None:
    """Take an adapter off, in place. With the last one every module object and requires_grad is as it was.

    Raises:
        ConfigError: no such adapter, or a merged model.
    """
    record = require_adapter(model, name)
    state = require_adapters(model)
    _check_unmerged(state, "detach")
    state.hide_()
    del state.adapters[name]
    state.active = tuple(active for active in state.active if active != name)
    for layer_name, layer in record.layers.items():
        del layer.adapters[name]
        if not layer.adapters:
            put_(model, layer_name, layer.base_layer)
    if not state.adapters:
        for parameter, flag in state.flags:
            parameter.requires_grad_(flag)
        set_adapters_(model, None)
    state.show_()


def set_active(model: nn.Module, name: str | Sequence[str] | None) -> None:
    """Choose the adapter that counts: one, several whose changes are added up, or None for the base alone.

    The chosen adapters' parameters require gradients, those of the others don't.

    Raises:
        ConfigError: an unknown name; a merged model; two adapters that both replace the same module or train
            biases.
    """
    state = require_adapters(model)
    names = () if name is None else (name,) if isinstance(name, str) else tuple(name)
    for each in names:
        require_adapter(model, each)
    _check_unmerged(state, "switch adapters")
    check_together(state, names)
    state.hide_()
    state.active = names
    state.mark_trainable_()
    state.show_()


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base alone, without any adapter, inside the `with`.

    Raises:
        ConfigError: nothing is attached, or the model is merged.
    """
    state = require_adapters(model)
    _check_unmerged(state, "disable adapters")
    was_shown = state.shown
    state.hide_()
    try:
        yield
    finally:
        if was_shown:
            state.show_()


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of all attached adapters in the order of attaching; empty for a plain model."""
    state = adapters_of(model)
    return () if state is None else tuple(state.adapters)


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that count now."""
    state = adapters_of(model)
    return () if state is None else state.active


def adapter_parameters(model: nn.Module, name: str = "default") -> list[tuple[str, nn.Parameter]]:
    """The trained parameters of one adapter with full names: A and B, biases, whole modules; in a fixed
    order."""
    return list(require_adapter(model, name).parameters())


def _check_name(name: str, state: ModelAdapters) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict, name):
        raise ConfigError(
            f"An adapter can't be named {name!r}: expected letters, digits, '_' and '-', and no word of "
            "nn.ModuleDict. Choose another name."
        )
    if name in state.adapters:
        raise ConfigError(
            f"An adapter {name!r} is attached already. Choose another name, or detach(model, {name!r}) first."
        )


def _check_unmerged(state: ModelAdapters, action: str) -> None:
    if state.merged:
        raise ConfigError(
            f"The model has {' and '.join(map(repr, state.merged))} merged into its weights; it can't "
            f"{action} now. Call unmerge(model) first."
        )


def check_together(state: ModelAdapters, names: Sequence[str]) -> None:
    """Refuse sets of adapters that have no common meaning."""
    if len(set(names)) < len(names):
        raise ConfigError(f"set_active: {list(names)!r} names an adapter twice. Name each once.")
    biased = [name for name in names if state.adapters[name].biases]
    if len(biased) > 1:
        raise ConfigError(
            f"The adapters {' and '.join(map(repr, biased))} each have biases of their own, and a layer has "
            "one bias. Activate one of them at a time, or train with bias='none'."
        )
    owner: dict[str, str] = {}
    for name in names:
        for module in state.adapters[name].saved:
            if module.name in owner:
                raise ConfigError(
                    f"The adapters {owner[module.name]!r} and {name!r} both replace the module "
                    f"{module.name}. Activate one of them at a time."
                )
            owner[module.name] = name


def _build(
    model: nn.Module, name: str, config: LoraConfig, resolution: Resolution, seed: int
) -> AdapterRecord:
    """Everything of the new adapter, not yet in the model."""
    modules = base_modules(model)
    layers: dict[str, AdaptedLayer] = {}
    pairs: dict[str, LowRankForm] = {}
    for target in resolution.targets:
        place = model.get_submodule(target.name)
        layers[target.name] = (
            place
            if isinstance(place, LoraLinear | LoraEmbedding)
            else wrap(modules[target.name], target.layout)
        )
        pairs[target.name] = _new_pair(config, target, modules[target.name], seed)
    saved = [
        SavedModule(
            each,
            model.get_submodule(each.rpartition(".")[0]),
            each.rpartition(".")[2],
            _plain_copy(modules[each]),
        )
        for each in resolution.saved
    ]
    biases = _new_biases(modules, resolution)
    for target_name, pair in pairs.items():
        layers[target_name].adapters[name] = pair
    return AdapterRecord(name, config, resolution, layers, saved, biases)


def _new_pair(config: LoraConfig, target: Target, module: nn.Module, seed: int) -> LowRankForm:
    """The tensors of one layer, in fp32 (fp64 for an fp64 base), on the device of the base's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    settings = Settings(target.r, target.lora_alpha, target.scaling, config.lora_dropout)
    r, n, m = target.r, target.in_features, target.out_features
    if weight.is_meta:
        k = len(target.slices)
        A = torch.empty((k, r, n) if k else (r, n), device="meta", dtype=dtype)
        B = torch.empty((k, m // target.slice_count, r) if k else (m, r), device="meta", dtype=dtype)
    elif config.is_pissa and target.layout is not Layout.EMBEDDING:
        oriented = weight if target.layout is Layout.LINEAR else weight.t()
        init = str(config.init_lora_weights)
        A, B = init_pissa(init, r, oriented, target.scaling, seed=seed, name=target.name)
    elif target.layout is Layout.EMBEDDING:
        A, B = init_embedding(config.init_lora_weights, r, n, m, seed=seed, name=target.name)
    elif target.slices:
        parts = [
            init_linear(
                config.init_lora_weights, r, n, m // target.slice_count, seed=seed, name=f"{target.name}.{i}"
            )
            for i in target.slices
        ]
        A, B = torch.stack([a for a, _ in parts]), torch.stack([b for _, b in parts])
    else:
        A, B = init_linear(config.init_lora_weights, r, n, m, seed=seed, name=target.name)
    A, B = A.to(weight.device, dtype).contiguous(), B.to(weight.device, dtype).contiguous()
    if target.slices:
        return SlicedLowRank(settings, A, B, slices=target.slices, slice_count=target.slice_count)
    if config.is_pissa and target.layout is not Layout.EMBEDDING:
        return PrincipalLowRank(settings, A, B)
    return LowRank(settings, A, B)


def _plain_copy(module: nn.Module) -> nn.Module:
    """A trainable copy without the wrappers that other adapters have put inside."""
    trained = copy_module(module)
    for name, inner in list(trained.named_modules()):
        if isinstance(inner, LoraLinear | LoraEmbedding):
            put_(trained, name, inner.base_layer)
    return trained


def _new_biases(modules: dict[str, nn.Module], resolution: Resolution) -> list[SavedBias]:
    """Copies of the biases that train; biases that are one Parameter stay one."""
    adapted = {target.name for target in resolution.targets}
    copies: dict[int, nn.Parameter] = {}
    found = []
    for name in resolution.biases:
        owner_name = name.rpartition(".")[0]
        owner = modules[owner_name]
        bias = owner._parameters["bias"]
        assert bias is not None
        copies.setdefault(id(bias), copy_bias(bias, as_float=owner_name in adapted))
        found.append(SavedBias(name, owner_name in adapted, owner, copies[id(bias)]))
    return found


def _install_(model: nn.Module, record: AdapterRecord) -> None:
    for name, layer in record.layers.items():
        put_(model, name, layer)
