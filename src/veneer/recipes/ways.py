"""Three ways to adapt transformers' GPT-2 classifier by its last two attention layers, and how each is stored.

    partial   c_attn of the last two blocks and the head train whole; the changed tensors are stored
    hook      LoRA of rank 1 on the same layers by forward hook, with their biases and the head
    peft      the same through the PEFT library

Each gives what trains and a function that stores it. This file knows models and files, no data and no loop.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from veneer.errors import MissingExtraError
from veneer.lora.hooks import hook_lora
from veneer.models.changes import write_changes
from veneer.recipes.storing import folder_bytes, write_peft_adapter

__all__ = ["PREPARE", "Ready", "check_way"]

R, ALPHA = 1, 4


@dataclass(frozen=True)
class Ready:
    """A model that is ready to be trained.

    Attributes:
        title: in words.
        model: what is called, (input_ids, attention_mask) -> logits.
        classifier: transformers' model below it.
        parameters: what trains.
        store: (folder, name of the base) -> bytes on disk.
    """

    title: str
    model: nn.Module
    classifier: Any
    parameters: list[nn.Parameter]
    store: Callable[[Path, str], int]


def check_way(way: str) -> None:
    """Raise MissingExtraError where a way's library is not installed."""
    if way == "peft" and importlib.util.find_spec("peft") is None:
        raise MissingExtraError("sst2-peft trains with the PEFT library and", "peft")


def _last_two(model: Any) -> tuple[int, int]:
    blocks = len(model.transformer.h)
    return blocks - 2, blocks - 1


def _partial(model: Any, seed: int) -> Ready:  # noqa: ARG001
    model.requires_grad_(False)
    trained = [
        f"transformer.h.{i}.attn.c_attn.{kind}" for i in _last_two(model) for kind in ("weight", "bias")
    ]
    trained.append("score.weight")
    for name in trained:
        model.get_parameter(name).requires_grad_(True)

    def store(folder: Path, base: str) -> int:
        write_changes(folder, model, trained, base_name=base)
        return folder_bytes(folder)

    title = "the last two attention layers and the head train whole"
    return Ready(title, model, model, [model.get_parameter(name) for name in trained], store)


def _hook(model: Any, seed: int) -> Ready:
    handle = hook_lora(
        model, ["c_attn"], r=R, lora_alpha=ALPHA, layers_to_transform=_last_two(model), bias="lora_only",
        modules_to_save=["score"], seed=seed,
    )  # fmt: skip

    def store(folder: Path, base: str) -> int:
        """As PEFT's adapter: what the hooks added, any PEFT user can load."""
        state = handle.state_dict()
        handle.remove()
        return write_peft_adapter(folder, model, handle.config, state, base_name=base, task_type="SEQ_CLS")

    title = f"LoRA of rank {R} by forward hook, nothing replaced"
    return Ready(title, model, model, handle.parameters(), store)


def _peft(model: Any, seed: int) -> Ready:
    import peft
    import torch

    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=["c_attn"], layers_to_transform=list(_last_two(model)),
        bias="lora_only", modules_to_save=["score"], fan_in_fan_out=True, task_type="SEQ_CLS",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers, not of ours
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, config)

    def store(folder: Path, base: str) -> int:
        wrapped.peft_config["default"].base_model_name_or_path = base
        wrapped.save_pretrained(folder, save_embedding_layers=False)
        return folder_bytes(folder)

    trained = [p for p in wrapped.parameters() if p.requires_grad]
    title = f"LoRA of rank {R} through PEFT {peft.__version__}"
    return Ready(title, wrapped, wrapped.base_model.model, trained, store)


PREPARE: dict[str, Callable[[Any, int], Ready]] = {"partial": _partial, "hook": _hook, "peft": _peft}
