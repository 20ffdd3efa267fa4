"""Putting a base's frozen linear layers into int8, in place.

Adapters that are attached stay attached; more can be attached afterwards. There is no way back: the weights that were
rounded are gone. This file must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from veneer.errors import ConfigError
from veneer.lora.dora import Dora
from veneer.lora.int8 import Int8Linear, Int8Weight
from veneer.lora.layers import Layout, LoraLinear, layout_of
from veneer.lora.matching import block_number, under
from veneer.lora.state import ModelAdapters, adapters_of, put_
from veneer.lora.targets import base_modules
from veneer.naming import setting

__all__ = ["held_in_int8", "quantizable", "quantize_"]


def quantizable(model: nn.Module, *, keep: Sequence[str] = ()) -> list[str]:
    """The names of the layers that `quantize_` would round: the frozen linear ones inside numbered blocks.

    Left as they are: what `keep` names, what is trained, weights that another module has too, layers whose class
    reads their weight bare, and every layer that LoRA would not know.
    """
    modules, attached = base_modules(model), adapters_of(model) is not None
    owners: dict[int, int] = {}
    for module in modules.values():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = []
    for name, module in modules.items():
        if layout_of(module) not in (Layout.LINEAR, Layout.CONV1D) or isinstance(module, Int8Linear):
            continue
        weight = module._parameters.get("weight")
        parent = modules[name.rpartition(".")[0]]
        if (
            block_number(f"{name}.weight") is not None
            and not under(name, keep)
            and weight is not None
            and weight.is_floating_point()
            and owners[id(weight)] == 1
            and not (attached and weight.requires_grad)
            and not isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer)
        ):
            found.append(name)
    return found


def quantize_(model: nn.Module, *, keep: Sequence[str] = ()) -> int:
    """Round the layers of `quantizable` to int8. Returns how many there were; 0: nothing was changed.

    Raises:
        ConfigError: a DoRA adapter is attached, or one is merged into the weights.
        BaseError: a weight that is infinite or not a number.
    """
    state = adapters_of(model)
    if state is not None and state.merged:
        raise ConfigError("precision int8: an adapter is merged into the weights. Call unmerge(model) first.")
    names = quantizable(model, keep=keep)
    modules = base_modules(model)
    for name in names:
        _check_adapters(model.get_submodule(name), name)
    for name in names:
        old, new = modules[name], _rounded(modules[name])
        place = model.get_submodule(name)
        if isinstance(place, LoraLinear):
            place.base_layer = new
        else:
            put_(model, name, new)
        if state is not None:
            _follow_(state, old, new)
        del modules[name], old, place  # nothing holds the old weight while the next is rounded
    return len(names)


def held_in_int8(model: nn.Module) -> list[str]:
    """The names of the layers whose weights are int8 now."""
    return [name for name, module in base_modules(model).items() if isinstance(module, Int8Linear)]


def _check_adapters(layer: nn.Module, name: str) -> None:
    """Refuse DoRA, which needs the norms of the whole weight in every step.

    Raises:
        ConfigError: the layer has a DoRA adapter.
    """
    if isinstance(layer, LoraLinear) and any(isinstance(pair, Dora) for pair in layer.adapters.values()):
        raise ConfigError(
            f"precision int8: {name} has a DoRA adapter, which needs the norm of its whole weight at every step, so "
            f"that int8 would save nothing. Use bf16, or an adapter without {setting('lora.use_dora')}."
        )


def _rounded(layer: nn.Module) -> Int8Linear:
    transposed = layout_of(layer) is Layout.CONV1D
    weight = layer._parameters["weight"]
    assert isinstance(weight, Tensor)
    new = Int8Linear(
        Int8Weight.of(weight.detach().t() if transposed else weight.detach()),
        layer._parameters.get("bias"),
        transposed=transposed,
    )
    new.training = layer.training
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        getattr(new, hooks).update(getattr(layer, hooks))
    return new


def _follow_(state: ModelAdapters, old: nn.Module, new: Int8Linear) -> None:
    """Let what is kept of a layer be of the one that stands in its place now."""
    weight = old._parameters["weight"]
    state.flags[:] = [(parameter, flag) for parameter, flag in state.flags if parameter is not weight]
    state.flags.append((new.values, False))
    for record in state.adapters.values():
        for bias in record.biases:
            bias.owner = new if bias.owner is old else bias.owner
