"""From a configuration to everything that a run needs: data, base, task, adapter, token ids, plan.

What was left to Veneer (None, "auto") is decided here, once, and stands in the resolved configuration. This file knows
the rooms below it; it trains nothing and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from veneer.data.choices import Choice, counted
from veneer.data.prepare import Prepared, prepare
from veneer.data.rows import Split
from veneer.data.tokens import TokenStore
from veneer.engine import choose_precision
from veneer.engine.prefix import PrefixStore, build_prefix, first_trained_block
from veneer.errors import ConfigError
from veneer.models import Base, load_base
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.classification import Classification, balanced_weights
from veneer.tasks.encoding import token_store
from veneer.tasks.fitting import fit_lora
from veneer.training.config import TrainConfig
from veneer.training.loop import Examples
from veneer.training.schedule import Plan, default_epochs

__all__ = ["Run", "set_up"]


@dataclass
class Run:
    """A run that is set up.

    Attributes:
        config: the resolved configuration.
        prepared: the rows.
        adapted: what is trained.
        stores: token ids by split name.
        prefixes: what is kept of the layers below the first adapted one, by split name; empty where there are none.
        plan: order and steps.
        choices: what was decided here, with reasons.
        warnings: what a person should look at.
    """

    config: TrainConfig
    prepared: Prepared
    adapted: Adapted
    stores: dict[str, TokenStore]
    plan: Plan
    prefixes: dict[str, PrefixStore] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def examples(self) -> Examples:
        """The training texts."""
        targets = np.asarray(self.prepared.train.labels)
        return Examples(self.stores["train"], targets, self.prefixes.get("train"))

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

    Args:
        config: as given; resolved values in it are kept.
        device: where to compute.
        say: told what is being done, a few words at a time.
        progress: told of downloads.

    Raises:
        UserMistake: anything in the configuration, the data or the base that can't be used.
    """
    say("reading the data")
    prepared = prepare(config.data, progress=progress)
    choices, warnings = list(prepared.choices), list(prepared.warnings)
    say(f"loading {config.base}")
    base = load_base(
        config.base,
        labels=prepared.labels,
        multi_label=prepared.multi_label,
        seed=config.seed,
        revision=config.base_revision,
    )
    base = _pooled(base, config, choices)
    task = _task(config, prepared, base)
    config = _resolved(config, prepared, base, device, choices)
    say("attaching the adapter")
    adapted = adapt(
        base,
        task,
        config.lora_config(),
        max_length=config.max_length,
        precision=config.precision if config.precision != "auto" else "fp32",
        mode=config.mode,
        device=device,
        seed=config.seed,
    )
    config = config.replace(mode=adapted.runner.mode)
    choices.append(Choice("batches", adapted.runner.mode, adapted.runner.reason))
    say("reading the texts as tokens")
    stores = {split.name: _store(split, adapted) for split in prepared.splits if len(split)}
    _note_cuts(stores, adapted.max_length, warnings)
    epochs = config.epochs or 1
    plan = Plan(len(prepared.train), config.batch_size, config.gradient_accumulation, epochs, config.seed)
    prefixes = _prefixes(adapted, stores, config, choices, say)
    return Run(config, prepared, adapted, stores, plan, prefixes, choices, warnings)


def _pooled(base: Base, config: TrainConfig, choices: list[Choice]) -> Base:
    if config.pooling == "auto":
        choices.append(Choice("pooling", base.pooling, f"as {base.name} was trained"))
        return base
    if base.causal and config.pooling == "first":
        raise ConfigError(
            f"pooling: 'first' reads nothing of the text on {base.name}: a decoder's first token sees itself only. "
            "Use 'last' or 'mean'."
        )
    return base.with_pooling(config.pooling)


def _task(config: TrainConfig, prepared: Prepared, base: Base) -> Classification:
    targets = np.asarray(prepared.train.labels)
    weights: tuple[float, ...] = ()
    if config.class_weights == "balanced":
        weights = balanced_weights(targets, prepared.labels, multi_label=prepared.multi_label)
    return Classification(
        labels=prepared.labels,
        label_values=tuple(prepared.label_set.value(i) for i in range(len(prepared.labels))),
        multi_label=prepared.multi_label,
        pooling=base.pooling,
        class_weights=weights,
        label_smoothing=config.label_smoothing,
    )


def _resolved(
    config: TrainConfig, prepared: Prepared, base: Base, device: str, choices: list[Choice]
) -> TrainConfig:
    """The configuration with everything decided that was left to Veneer."""
    changes: dict[str, object] = {"pooling": base.pooling, "task": "classification"}
    if config.epochs is None:
        changes["epochs"] = default_epochs(len(prepared.train))
        size = counted(len(prepared.train), "training text")
        choices.append(Choice("epochs", str(changes["epochs"]), f"enough for {size} without tuning"))
    if config.precision == "auto":
        import torch

        found = choose_precision("auto", torch.device(device))
        changes["precision"] = found.name
        choices.append(Choice("precision", found.name, found.reason))
    fitted = fit_lora(config.lora_config(), base.model, base.head, base.pooling)
    if fitted.unread:
        reason = f"{base.pooling} pooling does not read it"
        choices.append(Choice("not adapted", ", ".join(fitted.unread), reason))
    changes["lora"] = fitted.lora.to_dict()
    return config.replace(**changes)


def _store(split: Split, adapted: Adapted) -> TokenStore:
    pieces = (texts for texts, _ in split.batches())
    return token_store(pieces, adapted.base.tokenizer, adapted.max_length)


def _prefixes(
    adapted: Adapted,
    stores: dict[str, TokenStore],
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
    say(f"computing the {start} frozen layers once")
    found = {
        name: build_prefix(
            program,
            store,
            start,
            base_hash=adapted.base.content_hash,
            dtype=adapted.precision.dtype,
            device=adapted.device,
            causal=adapted.base.causal,
        )
        for name, store in stores.items()
    }
    size = sum(store.states.nbytes for store in found.values()) / 2**20
    reason = (
        f"the lowest adapted layer is number {start}; kept for every epoch and for later runs, {size:,.0f} MB"
    )
    choices.append(Choice("frozen prefix", f"{start} layers", reason))
    return found


def _note_cuts(stores: dict[str, TokenStore], max_length: int, warnings: list[str]) -> None:
    cut = sum(store.cut for store in stores.values())
    if cut:
        longest = max(store.longest for store in stores.values())
        warnings.append(
            f"{counted(cut, 'text')} cut to {max_length} tokens, which is what the model reads (the longest has "
            f"{longest:,}); the end of a longer text is not seen."
        )
