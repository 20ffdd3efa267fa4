"""The tensors of an adapter under PEFT's names, out of a model and into it.

    base_model.model.<layer>.lora_A.weight (r, n)            linear layers
    base_model.model.<layer>.lora_B.weight (m, r)
    base_model.model.<layer>.lora_embedding_A (r, rows)      embeddings, without .weight
    base_model.model.<layer>.lora_embedding_B (width, r)
    base_model.model.<layer>.lora_magnitude_vector (m,)      DoRA, either kind
    base_model.model.<layer>.base_layer.bias                 biases of adapted layers
    base_model.model.<module>.bias                           other biases (bias="all")
    base_model.model.<module>.<tensor>                       modules_to_save

Reading is strict: every tensor is accounted for, and all faults are told at once. This file must not know
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veneer.errors import AdapterError, nearest
from veneer.lora.dora import Dora
from veneer.lora.layers import AdaptedLayer, LoraEmbedding
from veneer.lora.low_rank import PrincipalLowRank, SlicedLowRank
from veneer.lora.state import AdapterRecord, require_adapter

__all__ = ["PREFIX", "adapter_state_dict", "load_adapter_state_dict"]

PREFIX = "base_model.model."
_SHOWN_FAULTS = 50


def adapter_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Copies of the adapter's tensors under PEFT's names, sorted, each contiguous and with memory of its own.

    An adapter with `qkv_slices` or PiSSA comes out as the ordinary LoRA of the same function: rank k r with a
    block-diagonal B, or rank 2 r; `peft_config_dict` says the same ranks.
    """
    record = require_adapter(model, name)
    found: dict[str, Tensor] = {}
    for layer_name, layer in record.layers.items():
        pair = layer.pair(name)
        factors = pair.direction() if isinstance(pair, Dora) else pair.factors()
        found |= zip(_factor_keys(layer_name, layer), factors, strict=True)
        if isinstance(pair, Dora):
            found[_magnitude_key(layer_name)] = pair.lora_magnitude_vector
    for bias in record.biases:
        found[_bias_key(bias.name, bias.in_adapted_layer)] = bias.copy
    for module in record.saved:
        for tensor_name, tensor in module.copy.state_dict().items():
            found[f"{PREFIX}{module.name}.{tensor_name}"] = tensor
    return {key: found[key].detach().clone().contiguous() for key in sorted(found)}


def load_adapter_state_dict(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Give an attached adapter the values of `state`, which has PEFT's names. All or nothing.

    Raises:
        AdapterError: tensors that are missing, unexpected, of a wrong shape, not floating-point or not
            finite: all in one error, and the model is as it was.
        ConfigError: no adapter `name` is attached.
    """
    record = require_adapter(model, name)
    slots = _slots(record)
    given = dict(state)
    faults = _drop_repeated(given, record, slots)
    for key, slot in slots.items():
        if key not in given:
            faults.append(f"missing: {key} {_shapes(slot.shapes)}")
        else:
            faults.extend(f"{key}: {fault}" for fault in _faults(given[key], slot.shapes, slot.floating))
    for key in given.keys() - slots.keys():
        hint = nearest(key, slots, n=1)
        faults.append(f"unexpected: {key} {tuple(given[key].shape)}. {hint}".rstrip())
    faults.extend(_pair_faults(record, given) if not faults else [])
    if faults:
        raise AdapterError(_summary(model, name, faults), _shortened(sorted(faults)))
    for layer_name, layer in record.layers.items():
        key_A, key_B = _factor_keys(layer_name, layer)
        layer.pair(name).load_factors_(given[key_A], given[key_B])
    with torch.no_grad():
        for key, slot in slots.items():
            if slot.target is not None:
                slot.target.copy_(given[key])


@dataclass(frozen=True)
class _Slot:
    """A tensor that is expected: the shapes it may have, and where its values go (None for factors)."""

    shapes: tuple[tuple[int, ...], ...]
    target: Tensor | None = None
    floating: bool = True


def _factor_keys(layer_name: str, layer: AdaptedLayer) -> tuple[str, str]:
    if isinstance(layer, LoraEmbedding):
        return f"{PREFIX}{layer_name}.lora_embedding_A", f"{PREFIX}{layer_name}.lora_embedding_B"
    return f"{PREFIX}{layer_name}.lora_A.weight", f"{PREFIX}{layer_name}.lora_B.weight"


def _magnitude_key(layer_name: str) -> str:
    return f"{PREFIX}{layer_name}.lora_magnitude_vector"


def _bias_key(bias_name: str, in_adapted_layer: bool) -> str:
    if in_adapted_layer:
        return f"{PREFIX}{bias_name.removesuffix('bias')}base_layer.bias"
    return f"{PREFIX}{bias_name}"


def _slots(record: AdapterRecord) -> dict[str, _Slot]:
    slots: dict[str, _Slot] = {}
    for layer_name, layer in record.layers.items():
        pair = layer.pair(record.name)
        ranks = [pair.rank, pair.settings.r] if isinstance(pair, PrincipalLowRank) else [pair.rank]
        key_A, key_B = _factor_keys(layer_name, layer)
        slots[key_A] = _Slot(tuple((rank, layer.in_features) for rank in ranks))
        slots[key_B] = _Slot(tuple((layer.out_features, rank) for rank in ranks))
        if isinstance(pair, Dora):
            slots[_magnitude_key(layer_name)] = _Slot(((layer.out_features,),), pair.lora_magnitude_vector)
    for bias in record.biases:
        slots[_bias_key(bias.name, bias.in_adapted_layer)] = _Slot((tuple(bias.copy.shape),), bias.copy)
    for module in record.saved:
        for tensor_name, tensor in module.copy.state_dict().items():
            slots[f"{PREFIX}{module.name}.{tensor_name}"] = _Slot(
                (tuple(tensor.shape),), tensor, tensor.is_floating_point()
            )
    return slots


def _faults(tensor: Tensor, shapes: tuple[tuple[int, ...], ...], floating: bool) -> list[str]:
    found = []
    if tuple(tensor.shape) not in shapes:
        found.append(f"shape {tuple(tensor.shape)}, expected {_shapes(shapes)}")
    if tensor.is_floating_point() != floating:
        found.append(
            f"dtype {tensor.dtype}, expected a {'floating-point' if floating else 'whole-number'} one"
        )
    elif floating and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        found.append(f"{bad} of its {tensor.numel()} values are not finite")
    return found


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " or ".join(str(shape) for shape in shapes)


def _pair_faults(record: AdapterRecord, given: Mapping[str, Tensor]) -> list[str]:
    """Faults of A and B together; their shapes are right one by one."""
    found = []
    randomised = record.config.init_lora_weights != "pissa"
    for layer_name, layer in record.layers.items():
        key_A, key_B = _factor_keys(layer_name, layer)
        pair = layer.pair(record.name)
        if given[key_A].shape[0] != given[key_B].shape[1]:
            found.append(
                f"{key_A} has rank {given[key_A].shape[0]}, {key_B} has rank {given[key_B].shape[1]}"
            )
        elif isinstance(pair, SlicedLowRank) and not pair.is_block_diagonal(given[key_B]):
            found.append(
                f"{key_B} is not zero outside the blocks of the slices: it was not made with these "
                "qkv_slices. Load it without qkv_slices"
            )
        elif isinstance(pair, PrincipalLowRank) and pair.settings.r == given[key_A].shape[0] and randomised:
            found.append(
                f"{key_A} has rank r, which leaves the start of a randomised PiSSA unknown. Store it "
                "converted (PEFT: path_initial_model_for_weight_conversion)"
            )
    return found


def _drop_repeated(given: dict[str, Any], record: AdapterRecord, slots: Mapping[str, _Slot]) -> list[str]:
    """Take out of `given` what PEFT writes beside the adapter; what is not a mere repetition is a fault.

    With bias="all" PEFT repeats the biases of a saved module, and those of its untrained original; it stores
    the base's weight of an adapted embedding.
    """
    faults = []
    for module in record.saved:
        originals = f"{PREFIX}{module.name}.original_module."
        copies = f"{PREFIX}{module.name}.modules_to_save."
        for key in [key for key in given if key.startswith((originals, copies))]:
            tensor = given.pop(key)
            same = f"{PREFIX}{module.name}.{key.removeprefix(copies)}"
            if key.startswith(copies) and not (same in given and torch.equal(tensor, given[same])):
                faults.append(f"{key} is not the same as {same}")
    for layer_name, layer in record.layers.items():
        key = f"{PREFIX}{layer_name}.base_layer.weight"
        if isinstance(layer, LoraEmbedding) and key in given and key not in slots:
            tensor = given.pop(key)
            if tensor.shape != layer.weight.shape or not torch.equal(
                tensor.to(layer.weight), layer.weight.detach()
            ):
                faults.append(
                    f"{key} is another embedding than the base's ({tuple(tensor.shape)}, the base has "
                    f"{tuple(layer.weight.shape)}): the adapter was made on a changed base"
                )
    return faults


def _summary(model: nn.Module, name: str, faults: list[str]) -> str:
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return (
        f"The tensors don't fit the adapter {name!r} on this {type(model).__name__} ({count}). Nothing was "
        "loaded. Use the base and the configuration that the adapter was made with:"
    )


def _shortened(faults: list[str]) -> list[str]:
    more = len(faults) - _SHOWN_FAULTS
    return faults[:_SHOWN_FAULTS] + ([f"and {more} more"] if more > 0 else [])
