"""What hangs in the slots of a `LinearGroup`, and what to compare to see that it has not changed.

Read for every product of every step, so it is read where `nn.Module` keeps it: through its `__getattr__` the looking
costs more than what is found.

This file knows `veneer.lora`'s layers and plain ones; it knows no product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from veneer.lora.dora import Dora, LayerAdapter
from veneer.lora.int8 import Int8Linear
from veneer.lora.layers import Layout, LoraLinear, layout_of
from veneer.lora.low_rank import LowRank

__all__ = ["Slot", "base_of", "bias_of", "can_be_joined", "layer_in", "made_of", "pair_of", "stamp"]

Slot = tuple[nn.Module, str]
"""Where a layer hangs: its parent and its name there. Attaching an adapter puts another object into the slot."""


def layer_in(slot: Slot) -> nn.Module:
    """What hangs there now."""
    parent, name = slot
    found = parent._modules.get(name)
    return cast(nn.Module, getattr(parent, name)) if found is None else found


def base_of(layer: nn.Module) -> Any:
    """The layer without its adapters."""
    return layer._modules["base_layer"] if isinstance(layer, LoraLinear) else layer


def bias_of(base: nn.Module) -> Tensor | None:
    """A base's bias (m,), or None."""
    if "bias" in base._parameters:
        return base._parameters["bias"]
    return cast("Tensor | None", base.bias)


def pair_of(layer: nn.Module) -> LayerAdapter | None:
    """The first active adapter of a layer, or None."""
    if not isinstance(layer, LoraLinear) or not layer.active:
        return None
    return _pair(layer, layer.active[0])


def can_be_joined(layers: Iterable[nn.Module]) -> bool:
    """Whether these layers' products can be one now, with their adapters in it (see `LinearGroup.ready`)."""
    gradients, of_first = torch.is_grad_enabled(), None
    for layer in layers:
        base = base_of(layer)
        in_int8 = isinstance(base, Int8Linear)
        of_first = in_int8 if of_first is None else of_first
        if in_int8 is not of_first or _hooked(layer) or (base is not layer and _hooked(base)):
            return False
        if layout_of(base) not in (Layout.LINEAR, Layout.CONV1D) or (gradients and _trained(base)):
            return False
        if isinstance(layer, LoraLinear) and not _is_plain(layer):
            return False
    return True


def made_of(layers: Iterable[nn.Module]) -> tuple[Any, ...] | None:
    """All that a product of these layers depends on but their biases: as it was if this is equal to what it was.

    That holds for as long as somebody has the weights and factors, so that nothing else comes to lie at their
    addresses. None: there is nothing to compare, for the weight or the factors are made at each call, or the weight
    wants a gradient and may change without a trace.
    """
    found: list[Any] = []
    for layer in layers:
        base = base_of(layer)
        weight = base._parameters.get("values" if isinstance(base, Int8Linear) else "weight")
        if weight is None or weight.requires_grad:
            return None
        found += (base, _stamp_of(weight))
        pair = pair_of(layer)
        if pair is not None:
            if type(pair) is not LowRank:
                return None
            found.append(pair.settings.scaling)
            for factor in pair._parameters.values():
                assert factor is not None
                found += (id(factor), factor.data_ptr(), factor.dtype, factor.shape, factor.is_contiguous())
    return tuple(found)


def stamp(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What changes when a tensor does: its place, its dtype, or the count of its changes in place."""
    return tuple(map(_stamp_of, tensors))


def _stamp_of(t: Tensor) -> tuple[Any, ...]:
    return id(t), t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version


def _pair(layer: LoraLinear, name: str) -> LayerAdapter:
    adapters = cast(nn.Module, layer._modules["adapters"])
    return cast(LayerAdapter, adapters._modules[name])


def _is_plain(layer: LoraLinear) -> bool:
    """Whether at most one adapter is active, of low rank and without dropout."""
    if len(layer.active) > 1:
        return False
    pair = pair_of(layer)
    if pair is None:
        return True
    return not isinstance(pair, Dora) and not (layer.training and pair.settings.dropout > 0)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _trained(base: nn.Module) -> bool:
    """Whether any parameter wants a gradient."""
    parameters: Iterable[Tensor | None] = base.parameters() if base._modules else base._parameters.values()
    return any(parameter is not None and parameter.requires_grad for parameter in parameters)
