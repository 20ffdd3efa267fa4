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

from torch import nn

from veneer.errors import ConfigError
from veneer.lora.build import build_adapter
from veneer.lora.config import LoraConfig
from veneer.lora.counts import ParameterCount, count_parameters
from veneer.lora.init import draw_seed
from veneer.lora.resolution import Resolution
from veneer.lora.state import (
    AdapterRecord,
    ModelAdapters,
    adapters_of,
    put_,
    require_adapter,
    require_adapters,
    set_adapters_,
)
from veneer.lora.targets import resolve_targets

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
        record = build_adapter(model, name, config, resolution, seed)
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
    """The trained parameters of one adapter with full names, in a fixed order."""
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


def _install_(model: nn.Module, record: AdapterRecord) -> None:
    for name, layer in record.layers.items():
        put_(model, name, layer)
