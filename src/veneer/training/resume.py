"""What an unfinished run leaves for the call that goes on with it, beside its checkpoints.

    given.json       the configuration as it was asked for
    resolved.yaml    the configuration as it was resolved
    choices.json     what was decided, with the reasons

This file knows the folder of a run; checkpoints are read elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veneer.data.choices import Choice
from veneer.errors import CheckpointError
from veneer.files import write_text
from veneer.naming import setting
from veneer.training.config import TrainConfig
from veneer.training.prepare import Run

__all__ = ["recall_choices_", "remember", "unfinished"]


def unfinished(folder: Path, config: TrainConfig) -> TrainConfig:
    """The resolved configuration of an unfinished run of the same call; else `config` itself.

    Raises:
        CheckpointError: the unfinished run there was called with other settings (which ones is said).
    """
    given = folder / "given.json"
    if not given.is_file() or not list(folder.glob("checkpoint-*")):
        return config
    before = _flat(json.loads(given.read_text(encoding="utf-8")))
    now = _flat(json.loads(config.model_dump_json()))
    differs = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in dict.fromkeys([*now, *before])
        if before.get(key) != now.get(key)
    ]
    if differs:
        raise CheckpointError(
            f"{folder} holds an unfinished run with other settings ({'; '.join(differs)}). Finish it with its own "
            f"settings, discard it with {setting('call.fresh', True)}, or train under another name with "
            f"{setting('call.out')}."
        )
    return TrainConfig.from_yaml(folder / "resolved.yaml")


def _flat(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"lora": {"r": 8}} -> {"lora.r": 8}."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return found


def remember(folder: Path, given: TrainConfig, run: Run) -> None:
    """Write what was asked for, what it was resolved to and why; a resumed run finds all three as they were."""
    write_text(folder / "given.json", given.model_dump_json())
    run.config.save(folder / "resolved.yaml")
    write_text(folder / "choices.json", json.dumps([vars(choice) for choice in run.choices]))


def recall_choices_(run: Run, folder: Path) -> None:
    """The reasons of the first call: a resumed run is given the results, and would say "asked for" of each."""
    found = json.loads((folder / "choices.json").read_text(encoding="utf-8"))
    run.choices[:] = [Choice(**choice) for choice in found]
