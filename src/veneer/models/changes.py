"""Only what changed: the trained tensors of a partly fine-tuned model, held against the base they belong to.

    write_changes(folder, model, names, base_name="openai-community/gpt2")
    load_changes_(fresh_base, folder)

A folder of two files: `changes.safetensors` with the tensors whole, under the model's own names, and
`changes.json`, which says what they are and carries the hash of all the *other* tensors. Loading compares that
hash with the model at hand, so that the result is the very model that was stored, or an error. For low-rank
changes see `veneer.adapter`. This file knows tensors and JSON, no training and no task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from veneer.errors import AdapterError, BaseError, ConfigError
from veneer.files import replacing_folder, write_bytes, write_text
from veneer.strict import StrictModel

__all__ = ["ChangesFacts", "load_changes_", "rest_hash", "write_changes"]

FACTS, TENSORS = "changes.json", "changes.safetensors"
FORMAT = 1


class ChangesFacts(StrictModel):
    """changes.json.

    format     version of this layout
    base       what the base is called
    rest_hash  "sha256:..." over every tensor that is not stored here
    tensors    their names
    values     how many numbers they hold
    """

    format: int = FORMAT
    base: str
    rest_hash: str
    tensors: tuple[str, ...]
    values: int


def write_changes(folder: Path, model: nn.Module, names: Iterable[str], *, base_name: str) -> ChangesFacts:
    """Store these tensors of `model`, whole or not at all; a folder that stood there is replaced.

    Args:
        folder: where to.
        model: the tuned model; everything but `names` has to be as in its base.
        names: keys of the state dict.
        base_name: for people, and to find the base again.

    Raises:
        ConfigError: no names, or one that the model does not have.
        VeneerError: the place can't be written.
    """
    state = model.state_dict()
    chosen = sorted(set(names))
    unknown = [name for name in chosen if name not in state]
    if not chosen or unknown:
        raise ConfigError(
            f"write_changes: {unknown or 'no names'} given; expected keys of the model's state dict."
        )
    tensors = {name: state[name].detach().cpu().contiguous() for name in chosen}
    facts = ChangesFacts(
        base=base_name,
        rest_hash=rest_hash(model, chosen),
        tensors=tuple(chosen),
        values=sum(tensor.numel() for tensor in tensors.values()),
    )
    with replacing_folder(folder) as new:
        write_bytes(new / TENSORS, save_tensors(tensors, metadata={"format": "pt"}))
        write_text(new / FACTS, facts.model_dump_json(indent=2) + "\n")
    return facts


@torch.no_grad()
def load_changes_(model: nn.Module, folder: Path) -> ChangesFacts:
    """Put stored tensors into a model of the same base, in place, all or none.

    Raises:
        AdapterError: the folder is damaged, or its tensors don't fit; every fault is listed.
        BaseError: the rest of the model is not that of the base it was stored with.
    """
    facts, tensors = _read(folder)
    state = model.state_dict()
    faults = [f"{name} is not in this {type(model).__name__}" for name in tensors if name not in state]
    for name, tensor in tensors.items():
        if name in state and tensor.shape != state[name].shape:
            faults.append(
                f"{name} has shape {tuple(tensor.shape)}; the model's has {tuple(state[name].shape)}"
            )
        elif not bool(tensor.isfinite().all()):
            faults.append(f"{name} holds values that are not finite")
    if faults:
        raise AdapterError(f"{folder} does not fit this model. Nothing was loaded:", faults)
    found = rest_hash(model, facts.tensors)
    if found != facts.rest_hash:
        raise BaseError(
            f"This model is not the base of {folder} ({facts.base}): the tensors that are not stored there have "
            f"the hash {found[:23]}..., expected {facts.rest_hash[:23]}... Load that base first."
        )
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
    return facts


def rest_hash(model: nn.Module, without: Collection[str]) -> str:
    """ "sha256:" over name, dtype, shape and bytes of every other tensor of the state dict, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in without:
            continue
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor))
    return "sha256:" + digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as they lie in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _read(folder: Path) -> tuple[ChangesFacts, dict[str, Tensor]]:
    try:
        given = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts = ChangesFacts.parse(given, where=FACTS)
        tensors = load_tensors((folder / TENSORS).read_bytes())
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise AdapterError(f"{folder} can't be read as stored changes: {error}") from error
    if facts.format > FORMAT:
        raise AdapterError(
            f"{folder} has format {facts.format}, this Veneer reads up to {FORMAT}: upgrade Veneer."
        )
    if set(tensors) != set(facts.tensors):
        odd = sorted(set(tensors) ^ set(facts.tensors))
        raise AdapterError(f"{folder}: {FACTS} and {TENSORS} name different tensors ({', '.join(odd)}).")
    return facts, tensors
