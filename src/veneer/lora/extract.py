"""A LoRA adapter out of two full models: the nearest low-rank form of what fine-tuning changed.

    B = U_r √S_r    A = √S_r V_rᵀ    where W_tuned - W_base = U S Vᵀ

`veneer.lora.difference` compares the models and knows the errors; here the adapter is made: its configuration
(the scaling is 1 everywhere), its tensors, and what it does not carry. This file knows no file format and no
model.

Shapes: n inputs and m outputs of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veneer.errors import TargetError
from veneer.lora.config import LoraConfig
from veneer.lora.difference import Difference, Method, Unrepresented, difference
from veneer.lora.layers import Layout
from veneer.lora.peft_state import PREFIX

__all__ = ["ExtractedLora", "adapter_of", "extract_lora"]


@dataclass(frozen=True)
class ExtractedLora:
    """An adapter out of two models, and how far it is off.

    Attributes:
        config: what to attach.
        pairs: module name -> A (r, n) and B (m, r), float32.
        saved: state-dict key -> the tuned model's tensor, for `modules_to_save`.
        errors: module name -> ‖D - B A‖_F / ‖D‖_F.
        error: the same over all layers together.
        unrepresented: what else differs between the models, and is in no adapter.
        layouts: module name -> how the module stores its weight.
    """

    config: LoraConfig
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    saved: Mapping[str, Tensor]
    errors: Mapping[str, float]
    error: float
    unrepresented: tuple[Unrepresented, ...]
    layouts: Mapping[str, Layout]

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors under PEFT's keys, for `load_adapter_state_dict` or an adapter file."""
        state: dict[str, Tensor] = {}
        for name, pair in self.pairs.items():
            infix, leaf = (
                ("lora_embedding_", "") if self.layouts[name] is Layout.EMBEDDING else ("lora_", ".weight")
            )
            for letter, tensor in zip("AB", pair, strict=True):
                state[f"{PREFIX}{name}.{infix}{letter}{leaf}"] = tensor.contiguous()
        return state | {f"{PREFIX}{key}": tensor.contiguous() for key, tensor in self.saved.items()}


def extract_lora(
    base: nn.Module,
    tuned: nn.Module | Mapping[str, Tensor],
    r: int,
    *,
    embeddings: bool = False,
    modules_to_save: Sequence[str] = (),
    method: Method = "exact",
    dtype: torch.dtype = torch.float64,
) -> ExtractedLora:
    """The adapter of rank r nearest to what differs between two models. Arguments and errors as for
    `difference`.

    To choose r by its error, call `difference` and then `adapter_of`. To use the result: `attach(base,
    x.config)`, then `load_adapter_state_dict(base, x.state_dict())`.
    """
    found = difference(
        base,
        tuned,
        embeddings=embeddings,
        modules_to_save=modules_to_save,
        max_r=r,
        method=method,
        dtype=dtype,
    )
    return adapter_of(found, r)


def adapter_of(found: Difference, r: int | Mapping[str, int]) -> ExtractedLora:
    """The adapter of rank r, or of one rank a layer (as `Difference.lowest_ranks` gives them).

    A layer whose smaller side is below r has that side as its rank: its difference is represented whole.

    Raises:
        TargetError: no layer that can have an adapter differs.
        ConfigError: r below 1, a layer without a rank, or more singular vectors than were kept.
    """
    if not found.layers:
        raise TargetError(
            "No layer that can have an adapter differs between the two models: nothing to extract. Check "
            "that the second is the tuned one."
        )
    ranks = found.ranks(r)
    return ExtractedLora(
        config=_config(r if isinstance(r, int) else max(ranks.values()), ranks, found.modules_to_save),
        pairs={layer.name: layer.pair(ranks[layer.name]) for layer in found.layers},
        saved=found.saved,
        errors={layer.name: layer.error(ranks[layer.name]) for layer in found.layers},
        error=found.error(ranks),
        unrepresented=found.unrepresented,
        layouts={layer.name: layer.layout for layer in found.layers},
    )


def _config(r: int, ranks: Mapping[str, int], modules_to_save: Sequence[str]) -> LoraConfig:
    """lora_alpha = r, also where a layer has a rank of its own: the scaling is 1."""
    own = {name: rank for name, rank in ranks.items() if rank != r}
    return LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=tuple(ranks),
        rank_pattern=own,
        alpha_pattern=dict(own),
        modules_to_save=tuple(modules_to_save) or None,
    )
