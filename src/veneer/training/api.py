"""`veneer.train`: a run in one line of Python.

It turns what a person writes into a `TrainConfig`; the run itself is in `veneer.training.run`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from veneer.data.config import DataConfig
from veneer.errors import ConfigError
from veneer.lora import LoraConfig
from veneer.training.config import TrainConfig, merged
from veneer.training.finish import Finished
from veneer.training.run import Reporter
from veneer.training.run import train as run

__all__ = ["train"]


def train(
    what: str | os.PathLike[str] | DataConfig | TrainConfig,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Finished:
    """Train an adapter and write its folder.

    >>> done = train("messages.csv", epochs=3, lora={"r": 8}, data={"text_column": "body"})  # doctest: +SKIP
    >>> done.path, done.facts.metrics["test"]["accuracy"]  # doctest: +SKIP

    Args:
        what: a file or a named source, a `DataConfig`, or a whole `TrainConfig`.
        out: the adapter folder; default: adapters/<name of the source>.
        overwrite: replace an adapter that stands there.
        fresh: discard an unfinished run instead of going on with it.
        reporter: told how it goes; default: nobody.
        settings: fields of `TrainConfig`; `data` and `lora` as mappings of their fields. They win over `what`.

    Raises:
        ConfigError: a field that does not exist (with the nearest name), or a value that it can't have.
        UserMistake: data or a base that can't be used.
        Interrupted: Ctrl-C; the state is saved, and the same call goes on.
    """
    if isinstance(settings.get("lora"), LoraConfig):
        settings["lora"] = settings["lora"].to_dict()
    config = TrainConfig.parse(merged(_below(what), settings), where="train()")
    return run(config, out=out, overwrite=overwrite, fresh=fresh, reporter=reporter)


def _below(what: str | os.PathLike[str] | DataConfig | TrainConfig) -> dict[str, Any]:
    """What is to be trained, as keys and values that settings are laid over."""
    if isinstance(what, TrainConfig | DataConfig):
        found: dict[str, Any] = what.model_dump(mode="json", exclude_unset=isinstance(what, DataConfig))
        return found if isinstance(what, TrainConfig) else {"data": found}
    if isinstance(what, str | os.PathLike):
        return {"data": {"source": os.fspath(what)}}
    raise ConfigError(
        f"train() was given {type(what).__name__}; expected a file, a named source, a DataConfig or a TrainConfig."
    )
