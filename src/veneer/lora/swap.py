"""Whole modules and biases that train with an adapter: copies that stand in the model while it is active.

The original object is never changed. While the adapter is active its place in the parent holds the copy; when
another adapter is switched to, or this one detached, the original is put back. A model that reads
`model.score.weight` or calls a bias directly therefore sees the right tensor without a wrapper.

Copies of modules in half precision are fp32: their inputs are cast to fp32 and their outputs back, because an
optimiser step of fp32 size is lost in bf16. This file must not know LoRA layers or configurations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["SavedBias", "SavedModule", "copy_bias", "copy_module"]

_HALF = (torch.bfloat16, torch.float16)


@dataclass
class SavedModule:
    """A module of `modules_to_save`: `copy` is trained and stored, the original waits."""

    name: str
    """Full name in the base model."""
    parent: nn.Module
    attribute: str
    copy: nn.Module
    waiting: nn.Module | None = None
    """The original while the copy stands in its place."""

    def put_in_(self) -> None:
        """Put the copy into the model, on the device and in the mode of the original."""
        original = self.parent._modules[self.attribute]
        assert original is not None
        _to_device_of_(self.copy, original)
        self.copy.train(original.training)
        self.waiting, self.parent._modules[self.attribute] = original, self.copy

    def put_back_(self) -> None:
        """Put the original back into the model."""
        if self.waiting is not None:
            _to_device_of_(self.waiting, self.copy)
            self.waiting.train(self.copy.training)
            self.parent._modules[self.attribute], self.waiting = self.waiting, None

    def make_plain_(self) -> None:
        """Turn the copy, which stands in the model, into an ordinary module of the base's dtype."""
        for hooks in (self.copy._forward_pre_hooks, self.copy._forward_hooks):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, _InFloat):
                    del hooks[key]
                    self.copy.to(owner.half)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their full names."""
        return [(f"{self.name}.{name}", parameter) for name, parameter in self.copy.named_parameters()]


@dataclass
class SavedBias:
    """A bias that trains with an adapter."""

    name: str
    """Full name in the base model, ending in `.bias`."""
    in_adapted_layer: bool
    owner: nn.Module
    """The module that has the bias."""
    copy: nn.Parameter
    waiting: nn.Parameter | None = None

    def put_in_(self) -> None:
        """Put the copy into the module, on the device of the original."""
        original = cast(nn.Parameter, self.owner._parameters["bias"])
        self.copy.data = self.copy.data.to(original.device)
        self.waiting, self.owner._parameters["bias"] = original, self.copy

    def put_back_(self) -> None:
        """Put the original back into the module."""
        if self.waiting is not None:
            self.waiting.data = self.waiting.data.to(self.copy.device)
            self.owner._parameters["bias"], self.waiting = self.waiting, None


def copy_module(module: nn.Module) -> nn.Module:
    """A trainable deep copy of a module; in fp32 where the module is in half precision."""
    trained = copy.deepcopy(module).requires_grad_(True)
    halves = {tensor.dtype for tensor in trained.parameters()} & set(_HALF)
    if halves:
        trained.float()
        in_float = _InFloat(halves.pop())
        trained.register_forward_pre_hook(in_float.before, with_kwargs=True)
        trained.register_forward_hook(in_float.after, with_kwargs=True)
    return trained


def copy_bias(bias: Tensor, *, as_float: bool) -> nn.Parameter:
    """A trainable copy of a bias (m,), in fp32 on request (where the layer casts it to the input's dtype)."""
    values = bias.detach().clone()
    return nn.Parameter(values.float() if as_float and values.dtype in _HALF else values)


def _to_device_of_(module: nn.Module, other: nn.Module) -> None:
    for parameter in other.parameters():
        module.to(parameter.device)
        return


class _InFloat:
    """A pair of hooks: inputs become fp32, and outputs go back to the dtype that the inputs had.

    Where all inputs are integers (an embedding), outputs go to `half`, the dtype of the base.
    """

    def __init__(self, half: torch.dtype) -> None:
        self.half = half
        self.waiting: list[torch.dtype] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ARG002
        """The forward pre-hook."""
        given = [value.dtype for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.waiting.append(next((dtype for dtype in given if dtype.is_floating_point), self.half))
        return _map_tensors(args, Tensor.float), _map_tensors(kwargs, Tensor.float)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ARG002
        """The forward hook."""
        dtype = self.waiting.pop()
        return _map_tensors(output, lambda tensor: tensor.to(dtype))


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to the floating tensors of a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, change) for key, item in value.items()}
    return value
