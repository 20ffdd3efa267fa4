"""What an adapter folder is, and what an adapter on a base would be: plain facts, before any weight is loaded.

Both answer `veneer inspect`. This file reads the folder and resolves targets; it computes no output and prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from veneer.adapter import CONFIG, FACTS, TENSORS, AdapterFolder, read_adapter
from veneer.errors import AdapterError
from veneer.lora import LoraConfig, count_parameters, lora_config_from_peft, resolve_targets
from veneer.models.forms import HeadSpec
from veneer.models.skeleton import skeleton
from veneer.tasks.fitting import fit_lora
from veneer.tasks.registry import kind_named

__all__ = [
    "AdapterDescription",
    "BaseDescription",
    "LayerGroup",
    "describe_adapter",
    "describe_base",
    "is_adapter",
]

_BYTES = 4  # adapters are stored in fp32


@dataclass(frozen=True)
class LayerGroup:
    """Adapted layers of one name but for their numbers, and of one size.

    pattern       full name with * for each number
    layers        how many
    in_features, out_features    of each
    r             rank of each
    parameters    trained values in A, B and DoRA's magnitudes, of all together
    """

    pattern: str
    layers: int
    in_features: int
    out_features: int
    r: int
    parameters: int


@dataclass(frozen=True)
class AdapterDescription:
    """An adapter folder.

    folder      as read
    lora        its configuration
    groups      what is adapted
    saved       module -> values that are stored whole (head, biases)
    files       file name -> bytes
    """

    folder: AdapterFolder
    lora: LoraConfig
    groups: tuple[LayerGroup, ...]
    saved: Mapping[str, int]
    files: Mapping[str, int]

    @property
    def made_by(self) -> str:
        """Either "veneer", or "peft" for a folder without veneer.json."""
        return "veneer" if self.folder.facts is not None else "peft"

    @property
    def parameters(self) -> int:
        """Trained values in all."""
        return sum(group.parameters for group in self.groups) + sum(self.saved.values())

    @property
    def base(self) -> str | None:
        """The base's name, as the folder says it."""
        facts = self.folder.facts
        return facts.base.name if facts else self.folder.peft_config.get("base_model_name_or_path")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        facts = self.folder.facts
        own: dict[str, Any] = {}
        if facts is not None:
            own = facts.model_dump(
                mode="json",
                include={"task", "data", "metrics", "baselines", "speed", "exactness", "versions"},
            )
            own |= {"labels": facts.task_facts.get("labels"), "pooling": facts.task_facts.get("pooling")}
            own |= {"changed": list(self.folder.changed)}
            own |= {"max_length": facts.max_length, "base_hash": facts.base.content_hash}
        return {
            "adapter": str(self.folder.path),
            "made_by": self.made_by,
            "base": self.base,
            "parameters": self.parameters,
            "size_bytes": self.folder.size_bytes,
            "lora": self.lora.to_dict(),
            "layers": [vars(group) for group in self.groups],
            "saved": dict(self.saved),
            "files": dict(self.files),
            **own,
        }


@dataclass(frozen=True)
class BaseDescription:
    """A base, and what a configuration would adapt of it.

    task          that its head is for
    labels        outputs of the head; 0: as many as it has
    pooling       of a head that gives one answer a text; else None
    parameters    of the base with its head
    trainable     values that would be trained
    saved         modules trained whole, by full name, and their values
    not_adapted   layers left out because no output depends on them
    """

    name: str
    family: str
    task: str
    labels: int
    pooling: str | None
    max_length: int
    lora: LoraConfig
    groups: tuple[LayerGroup, ...]
    saved: tuple[str, ...]
    saved_parameters: int
    bias_parameters: int
    not_adapted: tuple[str, ...]
    parameters: int
    trainable: int

    @property
    def share(self) -> float:
        """Trained values against those of base and adapter together, a fraction."""
        adapters = sum(group.parameters for group in self.groups)
        return self.trainable / (self.parameters + adapters)

    @property
    def size_bytes(self) -> int:
        """The adapter on disk, without the few kilobytes of names."""
        return self.trainable * _BYTES

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        plain = {key: value for key, value in vars(self).items() if key not in ("lora", "groups")}
        return {
            "base": plain.pop("name"),
            **plain,
            "share": self.share,
            "size_bytes": self.size_bytes,
            "lora": self.lora.to_dict(),
            "layers": [vars(group) for group in self.groups],
        }


def is_adapter(what: str | Path) -> bool:
    """Whether `what` is an adapter folder, whole or damaged, and not a base."""
    folder = Path(what)
    own = (CONFIG, TENSORS, FACTS)
    return (
        folder.is_dir()
        and not (folder / "config.json").is_file()
        and any((folder / n).is_file() for n in own)
    )


def describe_adapter(path: str | Path) -> AdapterDescription:
    """Read an adapter folder, ours or PEFT's, and say what is in it; the base is not needed.

    Raises:
        AdapterError: faults of the folder, all listed.
    """
    folder = read_adapter(Path(path))
    lora = lora_config_from_peft(folder.peft_config)
    pairs, saved = _pairs(folder.tensors)
    files = {file.name: file.stat().st_size for file in sorted(folder.path.iterdir()) if file.is_file()}
    return AdapterDescription(folder, lora, _grouped(pairs), saved, files)


def describe_base(
    name: str, lora: LoraConfig, *, labels: int = 2, task: str = "classification"
) -> BaseDescription:
    """What `lora` would adapt of a base with the head of a task; no weight is loaded.

    Args:
        name: folder or hub name.
        lora: the adapter's configuration.
        labels: outputs of the head, where the task says how many.
        task: its name.

    Raises:
        BaseError: the base's configuration can't be had or used, or it can't carry such a head.
        TargetError: a pattern that matches nothing, or only in part.
    """
    form = kind_named(task).form
    named = tuple(f"LABEL_{i}" for i in range(labels)) if form in ("sequence", "tokens") else ()
    base = skeleton(name, head=HeadSpec(form, named))
    fitted = fit_lora(lora, base.head, base.unread)
    found = resolve_targets(base.model, fitted.lora)
    layers = ((t.name, t.in_features, t.out_features, t.r, t.parameters) for t in found.targets)
    return BaseDescription(
        name=base.name,
        family=base.family,
        task=task,
        labels=len(named),
        pooling=base.pooling if form == "sequence" else None,
        max_length=base.max_length,
        lora=fitted.lora,
        groups=_grouped(layers),
        saved=found.saved,
        saved_parameters=found.saved_parameters,
        bias_parameters=found.bias_parameters,
        not_adapted=fitted.unread,
        parameters=count_parameters(base.model).total,
        trainable=found.trainable,
    )


def _pairs(tensors: Mapping[str, Tensor]) -> tuple[list[tuple[str, int, int, int, int]], dict[str, int]]:
    """The layers in a state of PEFT's names as (name, in, out, r, values), and all other tensors by module."""
    pairs, saved = [], dict[str, int]()
    for key, tensor in sorted(tensors.items()):
        name = key.removeprefix("base_model.model.")
        factor = re.fullmatch(r"(.*)\.lora_(embedding_)?A(\.weight)?", name)
        if factor is not None:
            other = tensors.get(key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B"))
            if other is None or tensor.ndim != 2 or other.ndim != 2:
                raise AdapterError(
                    f"{key} has no lora_B beside it; the tensors are not those of a LoRA adapter."
                )
            scale = tensors.get(f"base_model.model.{factor[1]}.lora_magnitude_vector")  # DoRA's
            values = tensor.numel() + other.numel() + (0 if scale is None else scale.numel())
            pairs.append((factor[1], tensor.shape[1], other.shape[0], tensor.shape[0], values))
        elif ".lora_" not in name:
            module = name.removesuffix(".base_layer.bias").rpartition(".")[0] or name
            saved[module] = saved.get(module, 0) + tensor.numel()
    return pairs, saved


def _grouped(layers: Iterable[tuple[str, int, int, int, int]]) -> tuple[LayerGroup, ...]:
    """Layers (name, in, out, r, values) together where they differ by the numbers in their names only."""
    found: dict[tuple[str, int, int, int], list[int]] = {}
    for name, n, m, r, values in layers:
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        found.setdefault((pattern, n, m, r), []).append(values)
    return tuple(
        LayerGroup(pattern, len(values), n, m, r, sum(values)) for (pattern, n, m, r), values in found.items()
    )
