"""Making everything of a new adapter before anything of the model is changed.

One function a part: the low-rank pair of a layer, the copy of a module, the copies of biases. This file must not
change the model; `veneer.lora.attach` puts the parts in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.lora.config import LoraConfig
from veneer.lora.dora import Dora, LayerAdapter
from veneer.lora.init import init_embedding, init_linear, init_pissa
from veneer.lora.int8 import Int8Linear
from veneer.lora.layers import AdaptedLayer, Layout, LoraEmbedding, LoraLinear, wrap
from veneer.lora.low_rank import LowRank, PrincipalLowRank, Settings, SlicedLowRank
from veneer.lora.resolution import Resolution, Target
from veneer.lora.state import AdapterRecord, put_
from veneer.lora.swap import SavedBias, SavedModule, copy_bias, copy_module
from veneer.lora.targets import base_modules
from veneer.naming import setting

__all__ = ["build_adapter"]


def build_adapter(
    model: nn.Module, name: str, config: LoraConfig, resolution: Resolution, seed: int
) -> AdapterRecord:
    """Everything of the new adapter, not yet in the model."""
    modules = base_modules(model)
    layers: dict[str, AdaptedLayer] = {}
    pairs: dict[str, LayerAdapter] = {}
    _check_int8(modules, resolution)
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


def _new_pair(config: LoraConfig, target: Target, module: nn.Module, seed: int) -> LayerAdapter:
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
    if target.use_dora:
        base = weight.detach()
        return Dora(settings, A, B, base if target.layout is Layout.LINEAR else base.t())
    if target.slices:
        return SlicedLowRank(settings, A, B, slices=target.slices, slice_count=target.slice_count)
    if config.is_pissa and target.layout is not Layout.EMBEDDING:
        return PrincipalLowRank(settings, A, B)
    return LowRank(settings, A, B)


def _check_int8(modules: dict[str, nn.Module], resolution: Resolution) -> None:
    """DoRA needs the norm of the whole weight at every step, so that int8 would save nothing."""
    for target in resolution.targets:
        if target.use_dora and isinstance(modules[target.name], Int8Linear):
            raise ConfigError(
                f"{setting('lora.use_dora')}: {target.name} is held in int8, and DoRA needs the norm of its "
                "whole weight at every step. "
                f"Use bf16, or leave {setting('lora.use_dora')} out."
            )


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
