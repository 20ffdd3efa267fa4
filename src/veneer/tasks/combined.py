"""An adapter folder out of several of one base and one task: the weighted sum of their changes.

`veneer.lora.algebra` has the mathematics; here are the folders: that they belong together, what becomes of their labels
and heads, and what the new folder says of itself. This file knows no terminal.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from veneer.adapter import AdapterFolder, BaseFacts, Facts, read_adapter, refuse_existing, write_adapter
from veneer.errors import AdapterError, UserMistake
from veneer.lora import (
    Combined,
    CombineMethod,
    adapter_state_dict,
    attach,
    combine,
    detach,
    load_adapter_state_dict,
    lora_config_from_peft,
    peft_config_dict,
    set_active,
)
from veneer.models.forms import HEAD_CLASSES
from veneer.models.heads import native_pooling
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import Input
from veneer.tasks.golden import golden_of
from veneer.tasks.leaving_pages import combined_page
from veneer.tasks.loading import load

__all__ = ["CombinedFolder", "combine_adapters"]

_NAME = "combined"
_GOLDEN_INPUTS = 8
_SAME = ("labels", "multi_label", "pooling", "pair", "template", "words")
"""Facts of a task that have to be the same, where the task has them."""


@dataclass(frozen=True)
class CombinedFolder:
    """What was written.

    Attributes:
        path: the folder.
        made: ranks, errors and the configuration.
        weights: adapter folder -> its weight.
        heads: what became of the heads: "same", "mean" or the name of the adapter whose they are.
    """

    path: Path
    made: Combined
    weights: Mapping[str, float]
    heads: str


def combine_adapters(
    out: str | Path,
    weights: Mapping[str, float],
    *,
    method: CombineMethod = "concat",
    r: int | None = None,
    density: float | None = None,
    seed: int = 0,
    heads: str = "same",
    base: str | None = None,
    overwrite: bool = False,
) -> CombinedFolder:
    """Write an adapter that adds the weighted sum of what several add. See `veneer.lora.combine` for the methods.

    Args:
        out: the adapter folder to write; it holds golden answers of its own and no metrics, for it was not measured.
        weights: adapter folder -> factor; two at least.
        method, r, density, seed: see `veneer.lora.combine`.
        heads: "same": the classification heads have to be equal; "mean": their weighted mean; or one of the folders
            (its path or its name), whose head is taken.
        base: where the base lies, if not where the adapters say.
        overwrite: whether an adapter at `out` may be replaced.

    Raises:
        AdapterError: adapters of different bases, tasks, labels or poolings, all listed.
        ConfigError: options that don't go together; heads that differ.
        UserMistake: something stands at `out`; fewer than two adapters; `out` is one of them.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    if len(weights) < 2:
        raise UserMistake(f"{len(weights)} adapter was given; two or more are needed to combine.")
    if out.resolve() in {Path(each).resolve() for each in weights}:
        raise UserMistake(f"{out} is one of the adapters to combine. Choose another place for the result.")
    folders = list(weights)
    read = {folder: read_adapter(Path(folder)) for folder in folders}
    all_facts = [read[folder].facts for folder in folders]
    _check_together(folders, all_facts)
    adapted = load(folders[0], base=base, precision="fp32", mode="padded")
    detach(adapted.model)  # it comes back under a name that errors can use
    names = _names(folders)
    for folder in folders:
        _attach_(adapted, read[folder], names[folder])
    by_name = {names[folder]: weight for folder, weight in weights.items()}
    chosen = names.get(heads, heads)
    made = combine(
        adapted.model, by_name, name=_NAME, method=method, r=r, density=density, seed=seed, heads=chosen
    )
    limits = [adapted.max_length, *(facts.max_length for facts in all_facts if facts is not None)]
    adapted = dataclasses.replace(adapted, lora=made.config, max_length=min(limits))
    _write(out, adapted, made, weights, chosen, _golden_inputs(all_facts), overwrite)
    return CombinedFolder(out, made, dict(weights), chosen)


def _names(folders: Sequence[str]) -> dict[str, str]:
    """Folder -> its own name as an adapter can have it, each another."""
    found: dict[str, str] = {}
    for i, folder in enumerate(folders, start=1):
        name = re.sub(r"[^A-Za-z0-9_-]", "_", Path(folder).resolve().name)
        taken = name in found.values() or name == _NAME or hasattr(nn.ModuleDict, name)
        found[folder] = f"{name}-{i}" if taken else name
    return found


def _attach_(adapted: Adapted, folder: AdapterFolder, name: str) -> None:
    """Put an adapter on the model; its tensors are held against the model."""
    attach(adapted.model, lora_config_from_peft(folder.peft_config), name=name, strict=False, seed=0)
    try:
        load_adapter_state_dict(adapted.model, folder.tensors, name)
    except AdapterError as error:
        raise AdapterError(f"{folder.path} does not fit the base of the first adapter: {error}") from error


def _check_together(folders: Sequence[str], all_facts: Sequence[Facts | None]) -> None:
    """Raise AdapterError where folders of ours say different things; PEFT's folders say nothing of this."""
    told = [(folder, facts) for folder, facts in zip(folders, all_facts, strict=True) if facts is not None]
    faults = []
    for folder, facts in told[1:]:
        first, wanted = told[0]
        pairs: list[tuple[str, Any, Any]] = [
            ("task", facts.task, wanted.task),
            ("base", facts.base.content_hash, wanted.base.content_hash),
            ("tokenizer", facts.base.tokenizer_hash, wanted.base.tokenizer_hash),
        ]
        pairs += [(key, facts.task_facts.get(key), wanted.task_facts.get(key)) for key in _SAME]
        faults += [
            f"{what}: {folder} has {_short(given)}, {first} has {_short(expected)}"
            for what, given, expected in pairs
            if given != expected
        ]
    if faults:
        raise AdapterError("These adapters can't be combined: they answer different questions.", faults)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _golden_inputs(all_facts: Sequence[Facts | None]) -> list[Input]:
    """Golden inputs of the adapters in turn, each once."""
    stored = [facts.golden.inputs for facts in all_facts if facts is not None and facts.golden is not None]
    longest = max((len(inputs) for inputs in stored), default=0)
    inputs = [inputs[i] for i in range(longest) for inputs in stored if i < len(inputs)]
    once = {json.dumps(one, sort_keys=True): one for one in inputs}
    return list(once.values())[:_GOLDEN_INPUTS]


def _write(
    out: Path,
    adapted: Adapted,
    made: Combined,
    weights: Mapping[str, float],
    heads: str,
    inputs: Sequence[Input],
    overwrite: bool,
) -> None:
    """Write the folder; its golden answers are those of the folder itself, loaded once from a temporary place."""
    set_active(adapted.model, _NAME)
    base, task = adapted.base, adapted.task
    form = base.spec.form
    native = form != "sequence" or native_pooling(adapted.model) == task.facts().get("pooling")
    # PEFT's classes ask for a head where the form has one.
    complete = form == "causal" or bool(made.config.modules_to_save)
    peft_config = peft_config_dict(
        made.config,
        adapted.model,
        base_model_name_or_path=base.name,
        task_type=HEAD_CLASSES[form].peft_task if native and complete else None,
        name=_NAME,
    )
    tensors = adapter_state_dict(adapted.model, _NAME)
    facts = Facts(
        task=task.name,
        task_facts=task.facts(),
        base=BaseFacts(
            name=base.name,
            content_hash=base.content_hash,
            tokenizer_hash=base.tokenizer_hash,
            family=base.family,
        ),
        lora=made.config.to_dict(),
        max_length=adapted.max_length,
        data={
            "source": "combined from " + ", ".join(f"{Path(p).name} ({w:g})" for p, w in weights.items()),
            "combined": {
                "adapters": {Path(path).name: weight for path, weight in weights.items()},
                "method": made.method,
                "error": made.error,
                "heads": heads,
            },
        },
        versions=adapted.facts.versions if adapted.facts is not None else {},
    )
    page = combined_page(out.name, adapted, weights, made, native)
    if inputs:
        with tempfile.TemporaryDirectory() as place:
            staging = Path(place) / "adapter"
            write_adapter(staging, peft_config=peft_config, tensors=tensors, facts=facts)
            again = load(staging, base=str(base.folder), precision="fp32")
            facts = facts.replace(golden=golden_of(again, inputs))
    extra: dict[str, str | bytes] = {"README.md": page}
    write_adapter(
        out, peft_config=peft_config, tensors=tensors, facts=facts, extra_files=extra, overwrite=overwrite
    )
