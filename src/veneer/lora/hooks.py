"""LoRA by forward hook: nothing in the model is replaced, the low-rank product is added on a layer's way out.

    with hook_lora(model, ["c_attn"], r=1, lora_alpha=4) as hooked:
        train(hooked.parameters())
        state = hooked.state_dict()

Every module, every state-dict key and every type stays as it was. A and B live outside the model, in the
handle; `remove()` puts everything back, requires_grad and the values of what was trained in place included.
A deep copy of a hooked model goes on using the original's A and B: copy first, hook then.

For training and serving `attach` is the sturdier way, with the same numbers at the same seed. This file must
not know models, tasks or files.

r rank, n inputs, m outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from veneer.errors import AdapterError, ConfigError, TargetError, nearest
from veneer.lora.autograd import low_rank_product
from veneer.lora.config import Bias, LoraConfig
from veneer.lora.init import draw_seed, init_linear
from veneer.lora.layers import Layout
from veneer.lora.low_rank import LowRank, Settings
from veneer.lora.peft_state import PREFIX
from veneer.lora.resolution import Resolution, Target
from veneer.lora.state import adapters_of
from veneer.lora.targets import resolve_targets

__all__ = ["HookedLora", "hook_lora"]


def hook_lora(
    model: nn.Module,
    target_modules: str | Sequence[str],
    r: int,
    lora_alpha: float,
    *,
    layers_to_transform: int | Sequence[int] | None = None,
    bias: Bias = "none",
    modules_to_save: Sequence[str] = (),
    seed: int | None = None,
) -> HookedLora:
    """Let the chosen layers answer with their own output plus `x (B A)^T * lora_alpha / r`.

    A (r, n) starts Kaiming uniform, B (m, r) at zero, so that the model's output is unchanged at first. All of
    the base's parameters stop requiring gradients, but for those that `bias` and `modules_to_save` name.

    Args:
        model: any module with nn.Linear or Conv1D inside, and no adapter attached.
        target_modules: names, suffixes or one expression, as in `LoraConfig`, and as strict.
        r: rank, at least 1.
        lora_alpha: numerator of the scaling, above 0.
        layers_to_transform: numbers of the blocks that are meant; None: all.
        bias: "lora_only" trains the biases of the hooked layers, "all" every bias; in place.
        modules_to_save: modules that are trained whole, in place: the head of a classifier.
        seed: of A; the same A as `attach` draws with this seed. None draws one from torch's generator.

    Raises:
        TargetError: a pattern that matches nothing or only half, or an embedding.
        ConfigError: numbers that can't be; a model with adapters; half-precision tensors to be trained in place.
    """
    if adapters_of(model) is not None:
        raise ConfigError(f"This {type(model).__name__} has adapters attached. Detach them before hooking.")
    layers = layers_to_transform
    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=target_modules if isinstance(target_modules, str) else tuple(target_modules),
        layers_to_transform=layers if layers is None or isinstance(layers, int) else tuple(layers),
        bias=bias,
        modules_to_save=tuple(modules_to_save) or None,
    )
    return HookedLora(model, config, draw_seed() if seed is None else seed)


class HookedLora:
    """The handle: A and B of every hooked layer, and the way back.

    Attributes:
        config: what it amounts to; `attach(model, config)` makes the same adapter by replacement.
        resolution: which layers are hooked, with their numbers.
        pairs: layer name -> its A (r, n) and B (m, r).
    """

    def __init__(self, model: nn.Module, config: LoraConfig, seed: int) -> None:
        self.config = config
        self.resolution: Resolution = resolve_targets(model, config)
        in_place = _in_place(model, self.resolution)
        self.pairs = {t.name: _new_pair(model, t, seed) for t in self.resolution.targets}
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._in_place = in_place
        self._originals = {name: p.detach().clone() for name, p in in_place.items()}
        self._handles: list[RemovableHandle] = []
        model.requires_grad_(False)
        for parameter in in_place.values():
            parameter.requires_grad_(True)
        for name, pair in self.pairs.items():
            hook = _Add(pair)
            self._handles.append(model.get_submodule(name).register_forward_hook(hook))

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Every trained parameter: A and B of each layer, then what is trained in the model itself."""
        pairs = [
            (f"{name}.{letter}", parameter)
            for name, pair in self.pairs.items()
            for letter, parameter in (("lora_A", pair.lora_A), ("lora_B", pair.lora_B))
        ]
        return pairs + list(self._in_place.items())

    def parameters(self) -> list[nn.Parameter]:
        """The same without names, for an optimiser."""
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def trainable(self) -> int:
        """The number of values that train."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all trained tensors under PEFT's names, as `adapter_state_dict` gives them for `attach`."""
        return {key: p.detach().clone() for key, p in sorted(self._by_peft_key().items())}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over tensors under PEFT's names, all or none.

        Raises:
            AdapterError: missing, unexpected, of another shape, or not finite; every fault is listed.
        """
        known = self._by_peft_key()
        faults = [f"missing: {key}" for key in known.keys() - state.keys()]
        for key, tensor in state.items():
            if key not in known:
                faults.append(f"unexpected: {key}. {nearest(key, known, n=1)}".rstrip())
            elif tensor.shape != known[key].shape:
                faults.append(f"{key}: shape {tuple(tensor.shape)}, expected {tuple(known[key].shape)}")
            elif not bool(tensor.isfinite().all()):
                faults.append(f"{key} holds values that are not finite")
        if faults:
            raise AdapterError(
                "The tensors don't fit the hooked layers. Nothing was loaded. Use those of the same "
                "target_modules, r, bias and modules_to_save:",
                sorted(faults),
            )
        for key, tensor in state.items():
            known[key].copy_(tensor)

    def remove(self) -> None:
        """Take the hooks off and put back every value and requires_grad; calling it again changes nothing.

        A and B stay in this handle, but what was trained in the model is lost: take `state_dict()` before.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        with torch.no_grad():
            for name, original in self._originals.items():
                self._in_place[name].copy_(original)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        for parameter in self._in_place.values():
            parameter.grad = None
        self._originals, self._flags = {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _by_peft_key(self) -> dict[str, nn.Parameter]:
        keyed: dict[str, nn.Parameter] = {}
        for name, parameter in self.named_parameters():
            owner, _, leaf = name.rpartition(".")
            if leaf in ("lora_A", "lora_B"):
                keyed[f"{PREFIX}{name}.weight"] = parameter
            elif leaf == "bias" and owner in self.pairs:
                keyed[f"{PREFIX}{owner}.base_layer.bias"] = parameter
            else:
                keyed[f"{PREFIX}{name}"] = parameter
        return keyed


class _Add:
    """The forward hook of one layer."""

    def __init__(self, pair: LowRank) -> None:
        self.pair = pair

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG002
        """(..., m) + (..., n) (B A)^T * scaling, (..., m)."""
        lora_A, lora_B = self.pair.factors()
        return output + low_rank_product(args[0], lora_A, lora_B, self.pair.settings.scaling).to(output.dtype)


def _new_pair(model: nn.Module, target: Target, seed: int) -> LowRank:
    """A and B in fp32 (fp64 for an fp64 base), on the device of the layer's weight."""
    weight = model.get_submodule(target.name).weight
    assert isinstance(weight, Tensor)
    A, B = init_linear(True, target.r, target.in_features, target.out_features, seed=seed, name=target.name)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    settings = Settings(target.r, target.lora_alpha, target.scaling, 0.0)
    return LowRank(settings, A.to(weight.device, dtype), B.to(weight.device, dtype))


def _in_place(model: nn.Module, resolution: Resolution) -> dict[str, nn.Parameter]:
    """The base's own parameters that train: biases and whole modules, by full name."""
    for target in resolution.targets:
        if target.layout is Layout.EMBEDDING:
            raise TargetError(
                f"{target.name} is an embedding, and only nn.Linear and Conv1D are hooked. Use attach() for it."
            )
    found = {name: model.get_parameter(name) for name in resolution.biases}
    for module in resolution.saved:
        found |= {f"{module}.{name}": p for name, p in model.get_submodule(module).named_parameters()}
    for name, parameter in found.items():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"{name} is {parameter.dtype}, and a hook trains it in place, where small steps would be lost. "
                "Cast it to float32 before, or use attach(), which trains a float32 copy."
            )
    return found
