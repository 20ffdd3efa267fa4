"""Checkpoints: everything that a run needs to go on to the same result, bit for bit.

A checkpoint is a folder, written whole or not at all; older ones go away when a newer one stands. Tensors are
safetensors, the rest is JSON. The order of the texts and the dropout are functions of seed and step (see `schedule`),
so no random state has to be kept. This file knows tensors and JSON, and nothing of what is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from veneer.errors import CheckpointError
from veneer.files import replacing_folder, write_bytes, write_text
from veneer.naming import setting

__all__ = ["Checkpoint", "latest_checkpoint", "save_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    Attributes:
        step: finished steps of the optimiser.
        identity: what the run must agree with to go on (hashes of configuration, data, base).
        weights: name -> trained tensor.
        optimizer: "<name>.exp_avg" and the like -> tensor.
        best: the weights of the best evaluation so far; empty before the first.
        progress: history, best figures, seconds, precision: JSON values.
    """

    step: int
    identity: dict[str, str]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder` and remove older ones. Returns its path.

    Raises:
        VeneerError: the disk is full; the checkpoints that stand are untouched.
    """
    path = folder / f"checkpoint-{checkpoint.step:08d}"
    state = {"step": checkpoint.step, "identity": checkpoint.identity, "progress": checkpoint.progress}
    with replacing_folder(path) as new:
        for name in ("weights", "optimizer", "best"):
            write_bytes(new / f"{name}.safetensors", _packed(getattr(checkpoint, name)))
        write_text(new / "state.json", json.dumps(state))
    left = [*_checkpoints(folder), *folder.glob(".checkpoint-*")]  # also what a killed process was writing
    for old in left:
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    return path


_OTHERS = {
    "configuration": "with another configuration",
    "data": "on other data (the rows have changed)",
    "base": "on another base (its weights have changed)",
}


def latest_checkpoint(folder: Path, identity: Mapping[str, str]) -> Checkpoint | None:
    """The newest whole checkpoint below `folder`; None where there is none.

    Raises:
        CheckpointError: it belongs to a run with another configuration, data or base, or it is damaged.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    path = found[-1]
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step, found_identity, progress = (state[key] for key in ("step", "identity", "progress"))
        tensors = {
            name: load_tensors((path / f"{name}.safetensors").read_bytes())
            for name in ("weights", "optimizer", "best")
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Start again with {setting('call.fresh', True)}, which discards it."
        ) from error
    differs = [key for key in identity if found_identity.get(key) != identity[key]]
    if differs:
        raise CheckpointError(
            f"{path.parent} holds an unfinished run {' and '.join(_OTHERS[key] for key in differs)}. "
            f"Finish it with its own settings, discard it with {setting('call.fresh', True)}, or train under another "
            f"name ({setting('call.out')})."
        )
    return Checkpoint(step=step, identity=found_identity, progress=progress, **tensors)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, the oldest first (a folder gets this name only when it is whole)."""
    return sorted(path for path in folder.glob("checkpoint-*") if (path / "state.json").is_file())
