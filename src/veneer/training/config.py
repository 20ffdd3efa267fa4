"""What a training run is: one strict configuration, from flags, a YAML file or Python.

The resolved configuration is written beside the adapter and runs again as it is. This file knows names and limits; it
loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pydantic
import yaml

from veneer.data.config import DataConfig
from veneer.errors import ConfigError
from veneer.files import write_text
from veneer.lora.config import LoraConfig
from veneer.models.locate import DEFAULT_BASE
from veneer.naming import setting
from veneer.strict import StrictModel
from veneer.tasks.registry import kind_named

__all__ = ["LORA_DEFAULTS", "TrainConfig", "merged", "resolved_lora"]

LORA_DEFAULTS: dict[str, Any] = {"r": 16, "target_modules": "all-linear"}
"""Where Veneer's training differs from `LoraConfig`'s own defaults; `lora_alpha` defaults to 2 r."""


class TrainConfig(StrictModel):
    """A training run. None means: chosen by Veneer, and said.

    data                   where the texts are (see `DataConfig`)
    base                   hub name or folder of the base
    base_revision          branch, tag or commit on the hub
    task                   what to learn, such as "classification"; "auto" infers it from the table and the base
    options                settings of the task's own, such as a template; which there are is the task's to say
    lora                   fields of `LoraConfig`; `lora_alpha` defaults to 2 r, `target_modules` to "all-linear"
    pooling                which states the head reads: "mean", "first", "last"; "auto": as the base was trained
    max_length             tokens that a text is cut to; None: what the base reads
    class_weights          "balanced" gives each label the same total weight in the loss
    label_smoothing        in [0, 1)
    epochs                 passes over the training texts; None: by their number
    batch_size             texts in a batch; None: 32 for a thousand short texts and more, else 16
    gradient_accumulation  batches in a step of the optimiser
    learning_rate          peak, of AdamW
    weight_decay           of the matrices A, B and of the head's weights
    schedule               how the rate falls after the warmup: "linear", "cosine" to 0; "constant"
    warmup                 share of all steps in which the rate rises from 0
    max_grad_norm          gradients are clipped to this norm; 0: not at all
    eval_every             steps between evaluations; None: once an epoch
    patience               stop after so many evaluations without a better one; None: never
    keep                   which adapter is kept: of the "best" evaluation, the "last", or "auto": the last, unless an
                           earlier one was better by more than a standard error
    base_dropout           True turns on the base's own dropout, as PEFT does; slower, and no better for LoRA
    gradient_checkpointing  computes each block again in the backward pass: less memory, the same bits, slower
    precision              dtype of the frozen base: "fp32", "bf16", or "auto": by a measurement; "int8" holds the
                           weights of its blocks in int8, not exactly, and computes in bf16 or fp32 by a measurement
                           ("int8-bf16" and "int8-fp32" say which)
    mode                   "packed", "padded", or "auto": packed where it is exact
    device                 "auto", "cpu", "cuda", "mps"
    threads                that compute, on a CPU; "auto": what OMP_NUM_THREADS says, else by a measurement. The last
                           bits of a result depend on it: an unfinished run goes on with the number it began with
    kernels                that compute on a CPU: "compiled" (by this machine's C compiler, once), "pytorch", or "auto":
                           compiled where there is a compiler. For bits and unfinished runs see `threads`
    seed                   decides the new weights, the order of the texts and the dropout
    checkpoint_every_s     seconds between checkpoints
    trackers               trackers of accelerate, such as "tensorboard", "wandb"
    baselines              compare with majority, TF-IDF and the untuned base
    """

    place: ClassVar[str | None] = ""

    data: DataConfig
    base: str = DEFAULT_BASE
    base_revision: str | None = None
    task: str = "auto"
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    lora: dict[str, Any] = pydantic.Field(default_factory=dict)
    pooling: Literal["auto", "mean", "first", "last"] = "auto"
    max_length: int | None = pydantic.Field(default=None, ge=1)
    class_weights: Literal["none", "balanced"] = "none"
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    epochs: int | None = pydantic.Field(default=None, ge=1)
    batch_size: int | None = pydantic.Field(default=None, ge=1)
    gradient_accumulation: int = pydantic.Field(default=1, ge=1)
    learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = pydantic.Field(default=0.1, ge=0, lt=1)
    max_grad_norm: float = pydantic.Field(default=1.0, ge=0)
    eval_every: int | None = pydantic.Field(default=None, ge=1)
    patience: int | None = pydantic.Field(default=None, ge=1)
    keep: Literal["auto", "best", "last"] = "auto"
    base_dropout: bool = False
    gradient_checkpointing: bool = False
    precision: Literal["auto", "fp32", "bf16", "int8", "int8-fp32", "int8-bf16"] = "auto"
    mode: Literal["auto", "packed", "padded"] = "auto"
    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    kernels: Literal["auto", "compiled", "pytorch"] = "auto"
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)
    checkpoint_every_s: float = pydantic.Field(default=20.0, gt=0)
    trackers: tuple[str, ...] = ()
    baselines: bool = True

    @pydantic.field_validator("task")
    @classmethod
    def _known_task(cls, given: str) -> str:
        if given != "auto":
            try:
                kind_named(given)
            except ConfigError as error:
                raise ValueError(str(error).removeprefix(f"{setting('task')}: ")) from error
        return given

    @pydantic.field_validator("threads", mode="wrap")
    @classmethod
    def _some_threads(
        cls, given: Any, check: Callable[[Any], int | Literal["auto"]]
    ) -> int | Literal["auto"]:
        """One fault, where the union would report one for each of its members."""
        if given == "auto" or (isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= 1024):
            return check(given)
        raise ValueError('expected a number of threads, 1 to 1024, or "auto"')

    @pydantic.field_validator("lora")
    @classmethod
    def _resolved_lora(cls, given: dict[str, Any]) -> dict[str, Any]:
        return resolved_lora(given).to_dict()

    def lora_config(self, **changes: Any) -> LoraConfig:
        """The adapter's configuration, with some fields filled in."""
        return LoraConfig.from_dict(self.lora | changes)

    def to_yaml(self) -> str:
        """The configuration as a YAML file that `from_yaml` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file; `overrides` (flags) win over it, also inside `data` and `lora`.

        Raises:
            ConfigError: the file can't be read, is no mapping, or has unknown keys or wrong values: all listed.
        """
        if not path.is_file():
            raise ConfigError(f"There is no file {path} (a configuration, in YAML).")
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} can't be read as YAML: {error}") from error
        if not isinstance(found, dict):
            raise ConfigError(
                f"{path} holds {type(found).__name__}, expected keys and values of a training run."
            )
        return cls.parse(merged(found, overrides or {}), where=str(path))

    def save(self, path: Path) -> None:
        """Write `to_yaml` to a file, whole or not at all."""
        write_text(path, self.to_yaml())


def resolved_lora(given: Mapping[str, Any]) -> LoraConfig:
    """Fields of `LoraConfig` with training's own defaults for those that are missing or None.

    Raises:
        ConfigError: an unknown field, or a value that it can't have.
    """
    named = LORA_DEFAULTS | {key: value for key, value in given.items() if value is not None}
    named.setdefault("lora_alpha", 2 * named["r"] if isinstance(named["r"], int) else 16)
    return LoraConfig.from_dict(named)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above`, also inside mappings; neither is changed.

    >>> merged({"a": 1, "lora": {"r": 8}}, {"lora": {"lora_alpha": 16}})
    {'a': 1, 'lora': {'r': 8, 'lora_alpha': 16}}
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
