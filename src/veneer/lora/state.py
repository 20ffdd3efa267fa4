"""What is attached to a model: one record an adapter, kept on the model itself and nowhere else.

There is no global state: two models never see each other's adapters, and a deep copy of a model has copies of
its own. This file must not know how adapters are matched, initialised or stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from veneer.errors import ConfigError, nearest
from veneer.lora.config import LoraConfig
from veneer.lora.layers import AdaptedLayer, LoraEmbedding, LoraLinear
from veneer.lora.resolution import Resolution
from veneer.lora.swap import SavedBias, SavedModule

__all__ = [
    "AdapterRecord",
    "ModelAdapters",
    "adapters_of",
    "put_",
    "require_adapter",
    "require_adapters",
    "set_adapters_",
]

_ATTRIBUTE = "_veneer_adapters"


@dataclass
class AdapterRecord:
    """One adapter on one model."""

    name: str
    config: LoraConfig
    resolution: Resolution
    layers: dict[str, AdaptedLayer]
    """Full name in the base model -> the layer that holds this adapter's pair."""
    saved: list[SavedModule]
    biases: list[SavedBias]

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every trained parameter with a name that does not depend on what else is attached."""
        for layer_name, layer in self.layers.items():
            for tensor_name, parameter in layer.adapters[self.name].named_parameters():
                yield f"{layer_name}.{tensor_name}", parameter
        for bias in self.biases:
            yield bias.name, bias.copy
        for module in self.saved:
            yield from module.parameters()


@dataclass
class ModelAdapters:
    """All adapters of one model."""

    adapters: dict[str, AdapterRecord] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    base_weights: list[tuple[nn.Module, str, nn.Parameter]] = field(default_factory=list)
    """While merged: module, parameter name, and the base's own Parameter that waits outside."""
    flags: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    """requires_grad of the base's parameters before the first adapter was attached."""
    shown: bool = True
    """False inside `disabled`."""

    def show_(self) -> None:
        """Let the active adapters take part in the model's forward."""
        self.shown = True
        for name in self.active:
            record = self.adapters[name]
            for layer in record.layers.values():
                layer.active = () if self.merged else tuple(a for a in self.active if a in layer.adapters)
            slots: tuple[SavedModule | SavedBias, ...] = (*record.saved, *record.biases)
            for slot in slots:
                slot.put_in_()

    def hide_(self) -> None:
        """Give the model back its own modules, biases and outputs; wrappers stay in place."""
        self.shown = False
        for record in self.adapters.values():
            for layer in record.layers.values():
                layer.active = ()
            slots: tuple[SavedModule | SavedBias, ...] = (*record.saved, *record.biases)
            for slot in slots:
                slot.put_back_()

    def mark_trainable_(self) -> None:
        """Only the active adapters' parameters require gradients."""
        for record in self.adapters.values():
            for _, parameter in record.parameters():
                parameter.requires_grad_(record.name in self.active)


def adapters_of(model: nn.Module) -> ModelAdapters | None:
    """The record of what is attached to `model`, or None."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, ModelAdapters) else None


def require_adapters(model: nn.Module) -> ModelAdapters:
    """The same, or ConfigError where nothing is attached."""
    state = adapters_of(model)
    if state is None:
        held = [
            name for name, module in model.named_modules() if isinstance(module, LoraLinear | LoraEmbedding)
        ]
        mend = (
            f"Its part {held[0]!r} has one: pass the module that was given to attach."
            if held
            else "Attach one first: attach(model, LoraConfig(...))."
        )
        raise ConfigError(f"This {type(model).__name__} has no adapter attached. {mend}")
    return state


def require_adapter(model: nn.Module, name: str) -> AdapterRecord:
    """The record of the adapter `name`, or ConfigError with the nearest name."""
    state = require_adapters(model)
    if name not in state.adapters:
        mend = nearest(name, state.adapters) or f"Attached are: {', '.join(map(repr, state.adapters))}."
        raise ConfigError(f"No adapter {name!r} is attached to this {type(model).__name__}. {mend}")
    return state.adapters[name]


def set_adapters_(model: nn.Module, state: ModelAdapters | None) -> None:
    """Keep `state` on the model, or nothing."""
    if state is not None:
        setattr(model, _ATTRIBUTE, state)
    elif hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


def put_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the child `name` of the model."""
    parent, _, attribute = name.rpartition(".")
    model.get_submodule(parent)._modules[attribute] = module
