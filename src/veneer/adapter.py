"""The adapter folder on disk: written whole, read strictly.

    adapter_config.json         PEFT's file, PEFT's keys
    adapter_model.safetensors   PEFT's tensor names
    veneer.json                 what the adapter is: `Facts`
    config.yaml                 the resolved training configuration; `veneer train --config` runs it again
    README.md, report.html, ... made from the same facts

A folder that PEFT wrote has the first two only, and is read as well. Pickles are refused. This file knows names,
tensors and JSON; it computes nothing and knows no task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from veneer.errors import AdapterError, ConfigError, UserMistake
from veneer.files import replacing_folder, write_bytes, write_text, writing_to
from veneer.naming import setting
from veneer.strict import StrictModel

__all__ = ["AdapterFolder", "BaseFacts", "Facts", "Golden", "read_adapter", "write_adapter"]

CONFIG, TENSORS, FACTS = "adapter_config.json", "adapter_model.safetensors", "veneer.json"
FORMAT = 1
_METADATA = {"format": "pt", "veneer": FACTS}
"""In the tensors' file: it was written with a veneer.json beside it. PEFT and transformers read "format" alone."""
_PICKLES = ("adapter_model.bin", "pytorch_model.bin", "adapter_model.pt", "adapter_model.pth")


class BaseFacts(StrictModel):
    """Which base an adapter belongs to.

    name            hub name or path
    content_hash    of its weights, "sha256:..."
    tokenizer_hash  of its tokenizer
    family          transformers' model_type
    """

    name: str
    content_hash: str
    tokenizer_hash: str
    family: str


class Golden(StrictModel):
    """Answers stored with the adapter and replayed when it is loaded.

    inputs     texts (or what the task takes), JSON values
    outputs    the task's numbers for each input, computed in fp32 from the folder as written
    tolerance  largest difference that a replay in fp32 may show
    """

    inputs: tuple[Any, ...]
    outputs: tuple[tuple[float, ...], ...]
    tolerance: float


class Facts(StrictModel):
    """veneer.json: all that the tensors do not say.

    format            version of this file's layout
    task              name of the task, such as "classification"
    task_facts        what the task needs to read the adapter: labels, pooling, template, ...
    base              which base it belongs to
    lora              the resolved LoraConfig
    max_length        tokens that a text is cut to
    data              source, rows, hash, and what was inferred
    training          the resolved configuration
    metrics           by split
    baselines         what simpler means reach on the same rows
    speed             seconds, texts a second, and where it ran
    exactness         precision, packed or padded, with the reasons
    golden            answers to replay
    tensors_hash      of adapter_model.safetensors, "sha256:..."; None in folders of before it was kept
    facts_hash        of everything else in this file, whatever its layout; None in folders of before it was kept
    versions          of Veneer, torch, transformers
    """

    format: int = FORMAT
    task: str
    task_facts: dict[str, Any]
    base: BaseFacts
    lora: dict[str, Any]
    max_length: int
    data: dict[str, Any] = pydantic.Field(default_factory=dict)
    training: dict[str, Any] = pydantic.Field(default_factory=dict)
    metrics: dict[str, Any] = pydantic.Field(default_factory=dict)
    baselines: list[dict[str, Any]] = pydantic.Field(default_factory=list)
    speed: dict[str, Any] = pydantic.Field(default_factory=dict)
    exactness: dict[str, Any] = pydantic.Field(default_factory=dict)
    golden: Golden | None = None
    tensors_hash: str | None = None
    facts_hash: str | None = None
    versions: dict[str, str] = pydantic.Field(default_factory=dict)


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter as read from disk.

    Attributes:
        path: the folder.
        peft_config: the content of adapter_config.json.
        tensors: PEFT's names -> tensors, all finite.
        facts: the content of veneer.json; None for a folder that PEFT wrote.
        tensors_hash: of the tensors' file as it is now, "sha256:...".
        facts_hash: of veneer.json as it is now, without its own `facts_hash`; "" where there is none.
        ours: whether Veneer wrote the tensors' file.
    """

    path: Path
    peft_config: dict[str, Any]
    tensors: dict[str, Tensor]
    facts: Facts | None
    tensors_hash: str = ""
    facts_hash: str = ""
    ours: bool = False

    @property
    def size_bytes(self) -> int:
        """Size of the tensors' file."""
        return (self.path / TENSORS).stat().st_size

    @property
    def changed(self) -> tuple[str, ...]:
        """What is no longer as Veneer wrote it, each file with its hashes; empty where nothing can be said."""
        if self.facts is None:
            return ()
        pairs = (
            (
                f"{TENSORS} is not the file that was written with {FACTS}",
                self.tensors_hash,
                self.facts.tensors_hash,
            ),
            (
                f"{FACTS} was edited (its labels, its base, its figures: something in it)",
                self.facts_hash,
                self.facts.facts_hash,
            ),
        )
        return tuple(
            f"{what} (its hash is {now[:23]}..., stored was {stored[:23]}...)"
            for what, now, stored in pairs
            if stored is not None and now != stored
        )


def write_adapter(
    path: Path,
    *,
    peft_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    facts: Facts,
    extra_files: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter folder, whole or not at all.

    The first two files depend on the configuration and the tensors only, so the same run writes the same bytes.

    Raises:
        UserMistake: the folder exists and `overwrite` is False, or exists and is no adapter folder.
        VeneerError: the disk is full, or the place can't be written.
    """
    refuse_existing(path, overwrite=overwrite)
    with replacing_folder(path) as folder:
        write_text(folder / CONFIG, json.dumps(dict(peft_config), indent=2, sort_keys=True) + "\n")
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = _ordered(save_tensors(contiguous, metadata=_METADATA))
        write_bytes(folder / TENSORS, data)
        hashed = facts.replace(tensors_hash=_hash(data))
        hashed = hashed.replace(facts_hash=_facts_hash(json.loads(hashed.model_dump_json())))
        write_text(folder / FACTS, hashed.model_dump_json(indent=2) + "\n")
        for name, content in (extra_files or {}).items():
            write_bytes(folder / name, content.encode("utf-8") if isinstance(content, str) else content)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `UserMistake` where writing to `path` would lose something that was not meant to be lost.

    Raises:
        VeneerError: the system does not let anybody look there.
    """
    with writing_to(path):
        if not path.exists():
            return
    if not path.is_dir() or (any(path.iterdir()) and not (path / CONFIG).is_file()):
        raise UserMistake(
            f"{path} exists and is not an adapter folder. Choose another place with {setting('call.out')}."
        )
    if not overwrite and any(path.iterdir()):
        raise UserMistake(
            f"{path} holds an adapter already. Give {setting('call.overwrite', True)} to replace it, or another place "
            f"with {setting('call.out')}."
        )


def read_adapter(path: Path) -> AdapterFolder:
    """Read an adapter folder, ours or PEFT's.

    Raises:
        AdapterError: not an adapter folder, pickled tensors, damaged files, tensors that are not finite: every
            fault found, in one error. What the tensors have to be is for `veneer.lora` to say.
    """
    faults: list[str] = []
    if not path.is_dir():
        raise AdapterError(f"There is no adapter folder {path}.")
    pickles = [name for name in _PICKLES if (path / name).is_file()]
    if pickles and not (path / TENSORS).is_file():
        raise AdapterError(
            f"{path} holds its tensors as a pickle ({', '.join(pickles)}), which can run code when it is opened; "
            "Veneer reads safetensors only. Convert it once with PEFT: load it and call "
            "save_pretrained(..., safe_serialization=True)."
        )
    config = _read_json(path / CONFIG, faults)
    data = (path / TENSORS).read_bytes() if (path / TENSORS).is_file() else None
    tensors = _read_tensors(data, faults)
    facts, facts_hash = _read_facts(path / FACTS, faults)
    if faults or data is None:
        raise AdapterError(f"{path} can't be used as an adapter:", faults)
    return AdapterFolder(path, config, tensors, facts, _hash(data), facts_hash, "veneer" in _metadata(data))


def _hash(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _facts_hash(content: Mapping[str, Any]) -> str:
    """Of veneer.json's content without this hash: of its values, not of blanks and the order of keys."""
    rest = {key: value for key, value in content.items() if key != "facts_hash"}
    return _hash(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii"))


def _ordered(data: bytes) -> bytes:
    """The same safetensors file, its metadata in a fixed order; the library's own order is another in each process."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    written = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode("utf-8").ljust(end - 8)
    assert len(written) == end - 8, "the same parts, in another order"
    return data[:8] + written + data[end:]


def _metadata(data: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: its head is a length of 8 bytes and JSON."""
    found: dict[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get(
        "__metadata__", {}
    )
    return found


def _read_json(path: Path, faults: list[str]) -> dict[str, Any]:
    if not path.is_file():
        faults.append(f"{path.name} is missing")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        faults.append(f"{path.name} is not valid JSON ({error})")
        return {}
    except RecursionError:
        faults.append(f"{path.name} is not the file that was written (lists stand in each other without end)")
        return {}
    if not isinstance(found, dict):
        faults.append(f"{path.name} holds {type(found).__name__}, expected an object")
        return {}
    return found


def _read_tensors(data: bytes | None, faults: list[str]) -> dict[str, Tensor]:
    if data is None:
        faults.append(f"{TENSORS} is missing")
        return {}
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError) as error:
        faults.append(f"{TENSORS} is not a whole safetensors file ({error})")
        return {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            faults.append(f"{name} holds {bad} values that are not finite")
    return tensors


def _read_facts(path: Path, faults: list[str]) -> tuple[Facts | None, str]:
    """veneer.json and the hash of what it holds now."""
    if not path.is_file():
        return None, ""
    before = len(faults)
    found = _read_json(path, faults)
    if len(faults) > before:
        return None, ""
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        faults.append(
            f"{path.name} has format {found['format']}, this Veneer reads up to {FORMAT}: upgrade Veneer"
        )
        return None, ""
    try:
        return Facts.parse(found, where=path.name), _facts_hash(found)
    except ConfigError as error:
        faults.append(str(error))
        return None, ""
