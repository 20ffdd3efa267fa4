"""From a configuration to everything that a run needs: data, base, task, adapter, token ids, plan.

What was left to Veneer (None, "auto") is decided here, once, and stands in the resolved configuration. This file knows
the rooms below it; it trains nothing and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from veneer.data.choices import Choice, counted
from veneer.data.prepared import PreparedData
from veneer.data.sources import Source
from veneer.engine import Precision, choose_kernels, choose_precision, choose_threads, use_kernels
from veneer.engine.prefix import PrefixStore, build_prefix, first_trained_block
from veneer.errors import ConfigError
from veneer.models import Base, load_base
from veneer.naming import setting
from veneer.strict import StrictModel
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.base import Encoded, Task
from veneer.tasks.fitting import fit_lora
from veneer.tasks.inference import check_base, infer_kind
from veneer.tasks.kind import Kind, Making, Settings
from veneer.training.config import TrainConfig
from veneer.training.loop import Examples
from veneer.training.schedule import Plan, default_batch_size, default_epochs

__all__ = ["Run", "set_up"]


@dataclass
class Run:
    """A run that is set up.

    Attributes:
        config: the resolved configuration.
        prepared: the rows.
        adapted: what is trained.
        stores: examples as tokens, by split name; the splits that have any.
        prefixes: what is kept of the layers below the first adapted one, by split name; empty where there are none.
        plan: order and steps.
        choices: what was decided here, with reasons.
        warnings: what a person should look at.
    """

    config: TrainConfig
    prepared: PreparedData
    adapted: Adapted
    stores: dict[str, Encoded]
    plan: Plan
    prefixes: dict[str, PrefixStore] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def examples(self) -> Examples:
        """The training features."""
        train = self.stores["train"]
        assert train.targets is not None  # they are labelled
        return Examples(train, train.targets, self.prefixes.get("train"))

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint has to agree with to be gone on from."""
        digest = hashlib.sha256(self.config.to_yaml().encode()).hexdigest()
        return {
            "configuration": digest,
            "data": self.prepared.content_hash,
            "base": self.adapted.base.content_hash,
        }


def set_up(
    config: TrainConfig,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Run:
    """Read the data, load the base, attach the adapter, tokenise.

    Sets PyTorch's number of threads and the kernels (`config.threads`, `config.kernels`) for the whole process;
    `own_threads` and `own_kernels` give them back.

    Args:
        config: as given; resolved values in it are kept.
        device: where to compute.
        say: told what is being done, a few words at a time.
        progress: told of downloads.

    Raises:
        UserMistake: anything in the configuration, the data or the base that can't be used.
    """
    say("reading the data")
    source = Source(config.data, progress)
    kind, inferred = infer_kind(config.task, source, config.base, config.base_revision)
    options = checked_options(kind, config)
    prepared = kind.prepare(source, options)
    choices, warnings = list(prepared.choices), list(prepared.warnings)
    if inferred is not None and all(choice.what != "task" for choice in choices):
        choices.insert(0, inferred)
    say(f"loading {config.base}")
    said = check_base(kind, config.base, config.base_revision, inferred)
    warnings += [said] if said else []
    head = kind.head(prepared, options)
    base = load_base(config.base, head=head, seed=config.seed, revision=config.base_revision)
    if "pooling" in kind.uses:
        base = _pooled(base, config, choices)
    settings = Settings(config.class_weights, config.label_smoothing)
    making = Making(prepared, base, options, settings)
    task = kind.make(making)
    choices += making.notes.choices
    warnings += making.notes.warnings
    precision = choose_precision(config.precision, torch.device(device))
    config = _resolved(config, kind, options, prepared, base, precision, choices)
    config = config.replace(threads=_threads_set(config, device, choices))
    config = config.replace(kernels=_kernels_set(config, device, choices, say))
    say("attaching the adapter")
    adapted = _attached(base, task, config, precision, device, choices)
    config = config.replace(mode=adapted.runner.mode)
    say("reading the texts as tokens")
    stores = _stores(adapted, prepared, kind.cut_says(task), choices, warnings)
    if config.batch_size is None:
        config = config.replace(batch_size=_batch_size(stores["train"], choices))
    plan = _plan(config, len(stores["train"]))
    prefixes = _prefixes(adapted, stores, config, choices, say)
    return Run(config, prepared, adapted, stores, plan, prefixes, choices, warnings)


def _plan(config: TrainConfig, examples: int) -> Plan:
    return Plan(
        examples, config.batch_size or 1, config.gradient_accumulation, config.epochs or 1, config.seed
    )


def _recomputing(adapted: Adapted) -> Adapted:
    runner = adapted.runner
    if runner.program is None:
        raise ConfigError(
            f"{setting('gradient_checkpointing')}: {type(runner.model).__name__} runs {runner.mode} through "
            "transformers' own forward, where nothing is computed again. Use smaller batches with "
            f"{setting('gradient_accumulation', 'N')} instead."
        )
    return replace(adapted, runner=runner.recomputing())


def _threads_set(config: TrainConfig, device: str, choices: list[Choice]) -> int:
    found = choose_threads(config.threads, torch.device(device))
    torch.set_num_threads(found.count)
    if config.threads == "auto":
        choices.append(Choice("threads", str(found.count), found.reason))
    return found.count


def _kernels_set(
    config: TrainConfig, device: str, choices: list[Choice], say: Callable[[str], None]
) -> Literal["compiled", "pytorch"]:
    say("making the kernels ready")
    found = choose_kernels(config.kernels, torch.device(device))
    use_kernels(found)
    if config.kernels == "auto":
        choices.append(Choice("kernels", found.name, found.reason))
    return found.name


def _batch_size(store: Encoded, choices: list[Choice]) -> int:
    texts, tokens = len(store), int(store.ids.lengths.sum())
    size = default_batch_size(texts, tokens)
    lengths = f"{counted(texts, 'training text')} of {tokens / max(1, texts):.0f} tokens on average"
    choices.append(Choice("batch size", str(size), lengths))
    return size


def checked_options(kind: Kind, config: TrainConfig) -> StrictModel:
    """The task's own options, parsed.

    Raises:
        ConfigError: an option that it does not know, or a setting that only other tasks read.
    """
    unread = {"pooling": "auto", "class_weights": "none", "label_smoothing": 0.0}
    given = [
        setting(name)
        for name, default in unread.items()
        if name not in kind.uses and getattr(config, name) != default
    ]
    given += [] if kind.options.model_fields else [setting(f"options.{name}") for name in config.options]
    if given:
        raise ConfigError(
            f"{' and '.join(given)}: the task {kind.name} ({kind.says}) does not read that; leave it out."
        )
    return kind.options.parse(config.options, where=f"options of the task {kind.name}")


def _pooled(base: Base, config: TrainConfig, choices: list[Choice]) -> Base:
    if config.pooling == "auto":
        choices.append(Choice("pooling", base.pooling, f"as {base.name} was trained"))
        return base
    if base.causal and config.pooling == "first":
        raise ConfigError(
            f"{setting('pooling')}: 'first' reads nothing of the text on {base.name}: a decoder's first token "
            "sees itself only. Use 'last' or 'mean'."
        )
    return base.with_pooling(config.pooling)


def _resolved(
    config: TrainConfig,
    kind: Kind,
    options: StrictModel,
    prepared: PreparedData,
    base: Base,
    precision: Precision,
    choices: list[Choice],
) -> TrainConfig:
    """The configuration with everything decided that was left to Veneer."""
    changes: dict[str, object] = {"task": kind.name, "options": options.model_dump(mode="json")}
    if "pooling" in kind.uses:
        changes["pooling"] = base.pooling
    if config.epochs is None:
        changes["epochs"] = default_epochs(len(prepared.train))
        size = counted(len(prepared.train), "training text")
        choices.append(Choice("epochs", str(changes["epochs"]), f"enough for {size} without tuning"))
    changes["precision"] = precision.setting
    if config.precision == "auto":
        choices.append(Choice("precision", precision.name, precision.reason))
    fitted = fit_lora(config.lora_config(), base.head, base.unread)
    if fitted.unread:
        reason = f"{base.pooling} pooling does not read it"
        choices.append(Choice("not adapted", ", ".join(fitted.unread), reason))
    changes["lora"] = fitted.lora.to_dict()
    return config.replace(**changes)


def _attached(
    base: Base, task: Task, config: TrainConfig, precision: Precision, device: str, choices: list[Choice]
) -> Adapted:
    """The base with a new adapter, as the configuration has it; how its batches are computed is decided here."""
    adapted = adapt(
        base,
        task,
        config.lora_config(),
        max_length=config.max_length,
        precision=precision,
        mode=config.mode,
        device=device,
        seed=config.seed,
    )
    if precision.name == "int8":
        choices.append(Choice("precision", "int8", adapted.precision.reason))
    if config.gradient_checkpointing:
        adapted = _recomputing(adapted)
    choices.append(Choice("batches", adapted.runner.mode, adapted.runner.reason))
    return adapted


def _stores(
    adapted: Adapted, prepared: PreparedData, lost: str, choices: list[Choice], warnings: list[str]
) -> dict[str, Encoded]:
    """Every split that has rows as tokens, by its name; `lost` says what it means where a text was cut."""
    stores = {
        split.name: adapted.task.encode(split, adapted.base.tokenizer, adapted.max_length)
        for split in prepared.splits
        if len(split)
    }
    choices += stores["train"].choices
    for store in stores.values():
        warnings += store.warnings
    cut = sum(store.cut for store in stores.values())
    if cut:
        longest = max(store.longest for store in stores.values())
        warnings.append(
            f"{counted(cut, 'text')} cut to {adapted.max_length} tokens, which is what the model reads (the longest "
            f"has {longest:,}); {lost}."
        )
    return stores


def _prefixes(
    adapted: Adapted,
    stores: dict[str, Encoded],
    config: TrainConfig,
    choices: list[Choice],
    say: Callable[[str], None],
) -> dict[str, PrefixStore]:
    """The kept prefix of every split, where some layers lie below the first adapted one and are run more than once."""
    program = adapted.runner.program
    if program is None or config.base_dropout or (config.epochs or 1) < 2:
        return {}
    start = first_trained_block(program, adapted.model)
    if start == 0:
        return {}
    if any(store.segments is not None for store in stores.values()):
        choices.append(Choice("frozen prefix", "none", "it is kept for texts without token types only"))
        return {}
    say(f"computing the {start} frozen layers once")
    rounded = " int8" if adapted.precision.name == "int8" else ""  # other states than the exact base's
    found = {
        name: build_prefix(
            program,
            store,
            start,
            base_hash=adapted.base.content_hash + rounded,
            dtype=adapted.precision.dtype,
            device=adapted.device,
            causal=adapted.base.causal,
        )
        for name, store in stores.items()
    }
    size = sum(store.kept.nbytes for store in found.values()) / 2**20
    reason = (
        f"the lowest adapted layer is number {start}; kept for every epoch and for later runs, {size:,.0f} MB"
    )
    choices.append(Choice("frozen prefix", f"{start} layers", reason))
    return found
