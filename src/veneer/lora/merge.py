"""Adding an adapter's change to the base's weights, and taking it out again, bit for bit.

    W' = W + scaling · B A        computed in fp32, stored in the dtype of W

While merged, each adapted module holds a new Parameter and the base's own waits outside, so that unmerging
puts back the very object; a weight that other modules share is not changed in them. This file must not know
files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from veneer.errors import BaseError, ConfigError
from veneer.lora.attach import check_together, set_active
from veneer.lora.int8 import Int8Linear
from veneer.lora.layers import AdaptedLayer
from veneer.lora.state import ModelAdapters, put_, require_adapter, require_adapters, set_adapters_
from veneer.lora.targets import base_modules

__all__ = ["merge", "merge_and_unload", "merged_adapters", "unmerge"]


def merge(model: nn.Module, name: str | Sequence[str] | None = None, *, untie: bool = False) -> None:
    """Put adapters into the base's weights, in place; outputs change by the weights' rounding only.

    Args:
        model: a model with adapters.
        name: one adapter, several (their changes are added up), or None for the active ones. They become
            active.
        untie: what to do where an adapted weight is shared with another module (word embeddings and the
            output layer): False refuses; True gives the adapted module a weight of its own and leaves the
            other's.

    Raises:
        ConfigError: nothing to merge, an unknown name, or a model that is merged already.
        BaseError: a shared weight without `untie`; weights that are held in int8; a result that is not finite.
            Nothing is changed.
    """
    state = require_adapters(model)
    if state.merged:
        raise ConfigError(f"{_named(state.merged)} is merged already. Call unmerge(model) first.")
    names = state.active if name is None else (name,) if isinstance(name, str) else tuple(name)
    if not names:
        raise ConfigError(
            "No adapter is active, so that there is nothing to merge. Name one: merge(model, name)."
        )
    for each in names:
        require_adapter(model, each)
    check_together(state, names)
    layers = {n: layer for each in names for n, layer in state.adapters[each].layers.items()}
    _check_whole(layers)
    if not untie:
        _check_untied(model, layers)
    weights = {n: _merged_weight(n, layer, names) for n, layer in layers.items()}
    set_active(model, names)
    state.hide_()
    for layer_name, weight in weights.items():
        _swap_(state, layers[layer_name].base_layer, "weight", weight)
    state.merged = names
    state.show_()
    _cast_biases_(state, layers)


def unmerge(model: nn.Module) -> None:
    """Take the merged adapters out again: every weight is the object and the bits that it was.

    Raises:
        ConfigError: nothing is merged.
    """
    state = require_adapters(model)
    if not state.merged:
        raise ConfigError("Nothing is merged into this model. Call merge(model) first.")
    while state.base_weights:
        module, attribute, parameter = state.base_weights.pop()
        module._parameters[attribute] = parameter
    state.hide_()
    state.merged = ()
    state.show_()


def merge_and_unload(
    model: nn.Module, name: str | Sequence[str] | None = None, *, untie: bool = False
) -> None:
    """Merge for good: a plain model with the changed weights, biases and whole modules, and no adapter left.

    For storing a model that needs no LoRA to run. Arguments and errors are those of `merge`.
    """
    state = require_adapters(model)
    if not state.merged:
        merge(model, name, untie=untie)
    elif name is not None:
        raise ConfigError(f"{_named(state.merged)} is merged already. Leave the name out, or unmerge first.")
    flags = {id(parameter): flag for parameter, flag in state.flags}
    for module, attribute, parameter in state.base_weights:
        changed = module._parameters[attribute]
        assert changed is not None
        changed.requires_grad_(flags.get(id(parameter), False))
    for record in state.adapters.values():
        if record.name in state.merged:
            for saved in record.saved:
                saved.make_plain_()
        for layer_name, layer in record.layers.items():
            put_(model, layer_name, layer.base_layer)
    for parameter, flag in state.flags:
        parameter.requires_grad_(flag)
    set_adapters_(model, None)


def merged_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that are in the weights now."""
    return require_adapters(model).merged


def _merged_weight(layer_name: str, layer: AdaptedLayer, names: Sequence[str]) -> Tensor:
    """W + the sum of the changes, in the dtype of W."""
    weight = layer.weight.detach()
    with torch.no_grad():
        total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for name in names:
            if name in layer.adapters:
                total += layer.delta(name).to(total.device)
        result = total.to(weight.dtype)
    if not bool(torch.isfinite(result).all()):
        bad = int((~torch.isfinite(result)).sum())
        raise BaseError(
            f"Merging {_named(names)} into {layer_name} would make {bad} of {result.numel()} weights "
            f"infinite or not a number in {weight.dtype}. Nothing was changed. Check the adapter, or load "
            "the base in float32."
        )
    return result


def _check_whole(layers: dict[str, AdaptedLayer]) -> None:
    """Refuse weights that were rounded to int8: the sum would have to be rounded again."""
    held = [name for name, layer in layers.items() if isinstance(layer.base_layer, Int8Linear)]
    if held:
        raise BaseError(
            f"{len(held)} of the adapted layers ({held[0]}, ...) are held in int8, and an adapter can't be merged into "
            "rounded weights. Load the base in float32 and merge there (`veneer merge` does)."
        )


def _check_untied(model: nn.Module, layers: dict[str, AdaptedLayer]) -> None:
    """Refuse weights that another module has too: storing the model would tie the two again."""
    owners: dict[int, list[str]] = {}
    for name, module in base_modules(model).items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    for name, layer in layers.items():
        others = [owner for owner in owners.get(id(layer.weight), []) if owner != name]
        if others:
            raise BaseError(
                f"{name} shares its weight with {' and '.join(others)}, which must not change with it. "
                "merge(model, untie=True) gives it a weight of its own in memory; before storing such a "
                "model, set config.tie_word_embeddings to False, or the two are tied again on loading."
            )


def _cast_biases_(state: ModelAdapters, layers: dict[str, AdaptedLayer]) -> None:
    """A merged layer is the base's own forward: its bias has to be in the dtype of the weight."""
    for layer in layers.values():
        base = layer.base_layer
        bias, weight = base._parameters.get("bias"), base._parameters["weight"]
        assert weight is not None
        if bias is not None and bias.dtype != weight.dtype:
            _swap_(state, base, "bias", bias.detach().to(weight.dtype))


def _swap_(state: ModelAdapters, module: nn.Module, attribute: str, value: Tensor) -> None:
    parameter = module._parameters[attribute]
    assert parameter is not None
    state.base_weights.append((module, attribute, parameter))
    module._parameters[attribute] = nn.Parameter(value, requires_grad=False)


def _named(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
