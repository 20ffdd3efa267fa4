"""What the recipes leave on disk: PEFT's two files, sizes, figures as JSON. Knows files, no experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from veneer.files import replacing_folder, write_bytes, write_text
from veneer.lora import (
    LoraConfig,
    adapter_names,
    adapter_state_dict,
    attach,
    detach,
    load_adapter_state_dict,
    peft_config_dict,
)

__all__ = ["folder_bytes", "write_figures", "write_peft_adapter"]


def write_peft_adapter(
    folder: Path,
    model: nn.Module,
    config: LoraConfig,
    state: Mapping[str, Tensor],
    *,
    base_name: str | None,
    task_type: str | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> int:
    """Write adapter_config.json and adapter_model.safetensors, whole or not at all; returns their bytes.

    The tensors are held against `model`, a plain base: the adapter is attached, loaded and taken off again, or,
    where the model has one attached already, that one is written. `extra_files` lie beside the two.
    """
    attached = bool(adapter_names(model))
    if not attached:
        attach(model, config)
    try:
        if not attached:
            load_adapter_state_dict(model, state)
        written = peft_config_dict(config, model, base_model_name_or_path=base_name, task_type=task_type)
        tensors = adapter_state_dict(model)
    finally:
        if not attached:
            detach(model)
    with replacing_folder(folder) as new:
        write_text(new / "adapter_config.json", json.dumps(written, indent=2, sort_keys=True) + "\n")
        write_bytes(new / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
        for name, content in (extra_files or {}).items():
            write_bytes(new / name, content)
    return folder_bytes(folder)


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """The figures of a run as JSON."""
    write_text(path, json.dumps(figures, indent=2) + "\n")
