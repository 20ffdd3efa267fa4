"""A base, an adapter on it, and the task that the two solve together.

Training makes one from a configuration, everything else loads one from an adapter folder. Loading is strict: every
tensor accounted for, the base's hashes compared, the golden answers replayed.

This file joins the rooms below it; it knows no data file and no training.

Shapes: N texts, B texts of a batch, K outputs of the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.adapter import AdapterFolder, Facts, read_adapter
from veneer.engine import PackedBatch, Precision, Runner, choose_precision, pack
from veneer.engine.device import choose_device
from veneer.engine.packing import Layout
from veneer.engine.precision import PrecisionName
from veneer.engine.prefix import PrefixStore
from veneer.errors import AdapterError, BaseError
from veneer.lora import (
    AttachReport,
    LoraConfig,
    attach,
    load_adapter_state_dict,
    lora_config_from_peft,
)
from veneer.models import Base, cast_frozen_, load_base
from veneer.models.heads import native_pooling
from veneer.tasks.base import Answer, Task, TokenSequences
from veneer.tasks.classification import Classification
from veneer.tasks.encoding import TokenLists, encode_texts
from veneer.tasks.golden import replay
from veneer.tasks.registry import task_from_facts

__all__ = ["Adapted", "adapt", "load"]

_MAX_BATCH_TOKENS = 4096
_MAX_BATCH_TEXTS = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Adapted:
    """An adapter in its place, ready to train or to answer.

    Attributes:
        base: the base, its model carrying the adapter.
        runner: how the base is run.
        task: what is asked.
        lora: the adapter's configuration.
        report: what was adapted.
        max_length: tokens that a text is cut to.
        precision: dtype of the frozen base.
        facts: veneer.json, where it came from a folder of ours.
    """

    base: Base
    runner: Runner
    task: Task
    lora: LoraConfig
    report: AttachReport
    max_length: int
    precision: Precision
    facts: Facts | None = None

    @property
    def model(self) -> nn.Module:
        """transformers' model with the adapter on it."""
        return self.base.model

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the tokenizer's special tokens, cut to `max_length`."""
        return encode_texts(self.base.tokenizer, texts, self.max_length)

    def outputs(self, batch: PackedBatch, below: tuple[int, Tensor] | None = None) -> Tensor:
        """(B, K) outputs of the head, in packed order, float32, differentiable in the adapter.

        `below`: the states before a block, where they are kept (see `veneer.engine.prefix`).
        """
        states = self.runner.hidden_states(batch, self.task.reads(batch.layout), below)
        return self.task.outputs(self.model, states, batch.layout)

    def outputs_of(
        self,
        sequences: TokenSequences,
        *,
        prefix: PrefixStore | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """(N, K) outputs for many texts, without gradients, in their order; batches of similar length.

        `prefix`: what is kept of the texts; `progress` is called with the texts done and N.
        """
        rows = np.arange(len(sequences))
        read = functools.partial(self.task.outputs, self.model)
        return self.map_rows(sequences, rows, read, prefix=prefix, progress=progress)

    def map_rows(
        self,
        sequences: TokenSequences,
        rows: NDArray[np.int64],
        read: Callable[[Tensor, Layout], Tensor],
        *,
        prefix: PrefixStore | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """(M, ...) what `read` makes of the states that the task reads, a row a text, without gradients."""
        lengths = np.asarray(sequences.lengths, dtype=np.int64)[rows]
        found: NDArray[np.float32] | None = None
        done = 0
        with torch.inference_mode():
            for places in length_batches(lengths):
                texts = rows[places]
                batch = pack([sequences[int(text)] for text in texts]).to(self.device)
                below = None if prefix is None else prefix.below(texts[list(batch.order)], self.device)
                states = self.runner.hidden_states(batch, self.task.reads(batch.layout), below)
                part = read(states, batch.layout).float().cpu().numpy()
                if found is None:
                    found = np.empty((len(rows), *part.shape[1:]), np.float32)
                found[places[list(batch.order)]] = part
                done += len(places)
                if progress is not None:
                    progress(done, len(rows))
        return np.zeros((0, 0), np.float32) if found is None else found

    def predict(self, texts: Sequence[str]) -> list[Answer]:
        """An answer for each text, in order.

        Raises:
            TypeError: one string was given, not a sequence of them.
        """
        if isinstance(texts, str):
            raise TypeError(
                "predict() takes a sequence of texts; put the one text into a list: predict([text])"
            )
        if not texts:
            return []
        return self.task.answers(self.outputs_of(TokenLists(self.encode(texts))))


def adapt(
    base: Base,
    task: Task,
    lora: LoraConfig,
    *,
    max_length: int | None = None,
    precision: PrecisionName | Precision = "auto",
    mode: Literal["auto", "packed", "padded"] = "auto",
    device: torch.device | str = "cpu",
    seed: int = 0,
    strict: bool = True,
) -> Adapted:
    """Put a new adapter on a base. The head and the adapter are float32, the frozen weights in `precision`.

    Raises:
        TargetError: `lora` matches nothing, or only in part.
    """
    device = torch.device(device)
    if isinstance(precision, str):
        precision = choose_precision(precision, device)
    model = base.model
    report = attach(model, lora, seed=seed, strict=strict)
    runner = Runner.of(model, mode=mode)
    cast_frozen_(model, precision.dtype, keep=base.float32_modules)
    model.to(device)
    limit = base.max_length if max_length is None else min(max_length, base.max_length)
    return Adapted(base, runner, task, lora, report, limit, precision)


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
    task = _task_of(folder)
    name = base or folder.peft_config.get("base_model_name_or_path")
    if not name:
        raise AdapterError(f"{folder.path} does not say which base it belongs to. Name it with --base.")
    revision = None if base else folder.peft_config.get("revision")
    found = load_base(str(name), labels=_labels_of(task), revision=revision)
    if folder.facts is None:
        found, task = _foreign(found, task)
    else:
        _check_base(found, folder.facts)
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
    if verify and folder.facts is not None and folder.facts.golden is not None:
        replay(adapted, folder.facts.golden)
    chosen = choose_precision(precision, adapted.device)
    cast_frozen_(adapted.model, chosen.dtype, keep=found.float32_modules)
    return Adapted(
        found, adapted.runner, task, lora, adapted.report, adapted.max_length, chosen, facts=folder.facts
    )


def length_batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows in batches of similar length, the longest first (so that a lack of memory shows at once)."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        texts = max(1, min(_MAX_BATCH_TEXTS, _MAX_BATCH_TOKENS // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + texts])
        start += texts
    return batches


def _task_of(folder: AdapterFolder) -> Task:
    if folder.facts is not None:
        return task_from_facts(folder.facts.task, folder.facts.task_facts)
    return Classification(
        labels=tuple(f"LABEL_{i}" for i in range(_outputs_of_head(folder))), pooling="first"
    )


def _outputs_of_head(folder: AdapterFolder) -> int:
    """How many labels the head of a folder of PEFT has."""
    ends = (".score.weight", ".classifier.weight", ".classifier.out_proj.weight")
    for name, tensor in folder.tensors.items():
        if name.endswith(ends):
            return int(tensor.shape[0])
    raise AdapterError(
        f"{folder.path} holds no classification head ({' or '.join(end[1:] for end in ends)}), so it can't answer. "
        "It was saved without modules_to_save; train it again with the head named there."
    )


def _foreign(base: Base, task: Task) -> tuple[Base, Task]:
    """A folder that PEFT wrote: read as transformers' own class for this base reads."""
    pooling = native_pooling(base.model)
    return base.with_pooling(pooling), Classification(labels=tuple(_labels_of(task)), pooling=pooling)


def _labels_of(task: Task) -> Sequence[str]:
    return task.labels if isinstance(task, Classification) else ("0",)


def _max_length(folder: AdapterFolder) -> int | None:
    return None if folder.facts is None else folder.facts.max_length


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
            "Name the right one with --base."
        )
