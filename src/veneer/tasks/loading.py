"""An adapter folder, ours or PEFT's, becomes an adapter in its place.

Files that do not belong together, another base, an answer that has changed: each is an error here, before anything is
answered. This file knows folders, bases and tasks; how they are run is for `adapted`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from veneer.adapter import AdapterFolder, Facts, read_adapter
from veneer.engine import choose_precision
from veneer.engine.device import choose_device
from veneer.engine.precision import PrecisionName
from veneer.errors import AdapterError, BaseError, DriftError
from veneer.lora import load_adapter_state_dict, lora_config_from_peft
from veneer.models import Base, cast_frozen_, load_base
from veneer.models.heads import native_pooling
from veneer.naming import setting
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.base import Task
from veneer.tasks.golden import replay
from veneer.tasks.registry import kind_of_peft, task_from_facts
from veneer.tasks.rounded import round_base_

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    base: str | None = None,
    precision: PrecisionName = "auto",
    mode: Literal["auto", "packed", "padded"] = "auto",
    device: torch.device | str = "cpu",
    verify: bool = True,
) -> Adapted:
    """Load an adapter folder, ours or PEFT's.

    Args:
        path: the folder.
        base: where its base lies, if not where adapter_config.json says.
        precision: dtype of the frozen base; "auto" measures.
        mode: packed, padded, or packed where that is exact.
        device: where to compute; "auto": a GPU where there is one.
        verify: replay the golden answers.

    Raises:
        AdapterError: faults of the folder, or of its tensors against the base, all listed.
        BaseError: the base can't be found, or is not the one that the adapter was trained on.
        DriftError: the adapter does not answer as it did when it was stored.
    """
    folder = read_adapter(Path(path))
    lora = lora_config_from_peft(folder.peft_config)
    found, task = _base_and_task(folder, base)
    adapted = adapt(
        found,
        task,
        lora,
        max_length=_max_length(folder),
        precision="fp32",
        mode=mode,
        device=choose_device(device),
        strict=False,  # PEFT names heads that this model need not have; the tensors are held against it below
    )
    load_adapter_state_dict(adapted.model, folder.tensors)
    if verify:
        _check_stored(adapted, folder)
    chosen = round_base_(found, choose_precision(precision, adapted.device))
    if chosen.name != "fp32":
        adapted.runner.forget_()
    cast_frozen_(adapted.model, chosen.dtype, keep=found.float32_modules)
    return Adapted(
        found, adapted.runner, task, lora, adapted.report, adapted.max_length, chosen, facts=folder.facts
    )


def _base_and_task(folder: AdapterFolder, base: str | None) -> tuple[Base, Task]:
    """The base that the adapter belongs to, with the head that its task needs; and the task."""
    facts = folder.facts
    if facts is None:
        _check_peft(folder)
        task = kind_of_peft(folder).of_peft(folder, None)
    else:
        task = task_from_facts(facts.task, facts.task_facts)
    name = base or folder.peft_config.get("base_model_name_or_path")
    if not name:
        raise AdapterError(
            f"{folder.path} does not say which base it belongs to. Name it with {setting('base')}."
        )
    revision = None if base else folder.peft_config.get("revision")
    try:
        found = load_base(str(name), head=task.head, revision=revision)
    except BaseError as error:
        if base is not None or Path(str(name)).expanduser().is_dir():
            raise
        raise BaseError(
            f"{folder.path} belongs to the base {name}, which can't be had: {error} If it lies elsewhere now, say "
            f"where with {setting('base')}."
        ) from error
    if facts is not None:
        _check_base(found, facts)
        return found, task
    if found.spec.form == "sequence":
        # PEFT wrote the folder: the text is read as transformers' own class for this base reads it.
        found = found.with_pooling(native_pooling(found.model))
    return found, kind_of_peft(folder).of_peft(folder, found)


def _max_length(folder: AdapterFolder) -> int | None:
    return None if folder.facts is None else folder.facts.max_length


def _check_peft(folder: AdapterFolder) -> None:
    """Refuse what lost its veneer.json, and can't be read without it as transformers' own class reads."""
    if folder.ours and folder.peft_config.get("task_type") is None:
        raise AdapterError(
            f"{folder.path} lacks its veneer.json, without which nobody knows how this adapter is read (its pooling, "
            "labels, template): it would answer wrongly. Copy the whole folder again."
        )


def _check_stored(adapted: Adapted, folder: AdapterFolder) -> None:
    """The stored answers again; and the files' hashes, for the answers are few and don't hold a label's name."""
    if folder.facts is not None and folder.facts.golden is not None:
        replay(adapted, folder.facts.golden)
    if folder.changed:
        raise DriftError(
            f"{folder.path}: {'; '.join(folder.changed)}. Copy the folder again, or load it with "
            f"{setting('call.verify', False)} if you changed it yourself."
        )


def _check_base(base: Base, facts: Facts) -> None:
    pairs = (
        ("weights", base.content_hash, facts.base.content_hash),
        ("tokenizer", base.tokenizer_hash, facts.base.tokenizer_hash),
    )
    faults = [
        f"the hash of its {what} is {found[:23]}..., the adapter was trained on {expected[:23]}..."
        for what, found, expected in pairs
        if found != expected
    ]
    if faults:
        raise BaseError(
            f"{base.name} is not the base of this adapter ({facts.base.name}): {'; '.join(faults)}. "
            f"Name the right one with {setting('base')}."
        )
