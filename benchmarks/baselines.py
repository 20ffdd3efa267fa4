"""The baselines: transformers and PEFT, without a line of ours in the measured part.

    a   the recipe as the sources write it: fp32, every text padded to the fixed length, plain AdamW
    b   as a careful person runs it: bf16 autocast, padding to the longest text of the batch, fused AdamW
    c   b, with batches of texts of similar length, as transformers' trainer groups them

Dropout in the frozen base is off in all of them (it costs time, and ours has none by default). Token ids are made
ahead of time, as for ours. Of this project only the order of the batches (`Plan`) is used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.materials import LABELS, SEED, Materials
from benchmarks.side import Commands, Measured, SideSpec
from benchmarks.workloads import WORKLOADS, Workload

__all__ = ["Baseline", "grouped_batches", "padded", "random_batches"]

_NOT_READ = -100  # transformers' label of a token that the loss does not read
_MEGABATCH = 50  # batches that are sorted together: transformers' LengthGroupedSampler


class Baseline:
    """One of the three."""

    def __init__(self, spec: SideSpec) -> None:
        self.workload: Workload = WORKLOADS[spec.workload]
        materials = Materials.from_json(spec.materials)
        flat, offsets, self.labels = materials.read_texts()
        self.texts = [flat[a:b].astype(np.int64) for a, b in pairwise(offsets)]
        self.next = [self.labels[a:b] for a, b in pairwise(offsets)] if self.workload.base.writes else []
        self.lengths = np.diff(offsets)
        self.side = spec.side
        self.careful = spec.side != "a"
        self.bf16 = self.careful and spec.precision == "bf16"
        self.model = peft_model(self.workload, materials)
        self.padding = int(self.model.config.pad_token_id or 0)

    def serve(self, commands: Commands) -> None:
        """Measure what is asked for."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        commands.ready(self._computed(self._epoch(0)), parameters=sum(p.numel() for p in trained))
        batches = self._batches()
        optimizer = self._optimizer(trained) if self.workload.train else None
        self.model.train(self.workload.train)
        while (steps := commands.next()) is not None:
            found = Measured()
            for _ in steps:
                if optimizer is None:
                    self._predict(next(batches), found)
                else:
                    self._step(next(batches), optimizer, found)
            commands.answer(found)

    def _epoch(self, number: int) -> list[NDArray[np.int64]]:
        if not self.workload.train:
            order = (
                np.argsort(-self.lengths, kind="stable") if self.side == "c" else np.arange(len(self.texts))
            )
            size = self.workload.batch_size
            batches = [order[i : i + size] for i in range(0, len(order), size)]
            # In a random order, so that some of them are a fair sample of all.
            return [batches[i] for i in np.random.default_rng([SEED, number]).permutation(len(batches))]
        make = grouped_batches if self.side == "c" else random_batches
        return make(self.lengths, self.workload.batch_size, number)

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        number = 0
        while True:
            yield from self._epoch(number)
            number += 1

    def _computed(self, batches: Sequence[NDArray[np.int64]]) -> int:
        return sum(len(rows) * self._length(rows) for rows in batches)

    def _length(self, rows: NDArray[np.int64]) -> int:
        return int(self.lengths[rows].max()) if self.careful else self.workload.fixed_length

    def _optimizer(self, trained: Sequence[torch.nn.Parameter]) -> torch.optim.AdamW:
        decay = self.workload.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.workload.learning_rate,
            fused=True if self.careful else None,
        )

    def _precision(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def _step(self, rows: NDArray[np.int64], optimizer: torch.optim.Optimizer, found: Measured) -> None:
        began = time.perf_counter()
        ids, mask = padded([self.texts[i] for i in rows], self._length(rows), self.padding)
        labels, labelled = self._labels(rows, ids.shape[1])
        with self._precision():
            loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        found.add(time.perf_counter() - began, self.lengths[rows], ids.numel(), value, labelled)

    def _labels(self, rows: NDArray[np.int64], length: int) -> tuple[Tensor, tuple[int, int] | None]:
        """The labels as transformers takes them, each at its own token; and see `Measured.labelled`."""
        if not self.next:
            return torch.from_numpy(self.labels[rows]), None
        found = np.full((len(rows), length), _NOT_READ, np.int64)
        for place, row in enumerate(rows):
            found[place, 1 : len(self.next[row])] = self.next[row][:-1]
        places = np.nonzero(found != _NOT_READ)[1]  # a token is foretold from those before it
        return torch.from_numpy(found), (len(places), int(places.sum()))

    def _predict(self, rows: NDArray[np.int64], found: Measured) -> None:
        began = time.perf_counter()
        with torch.inference_mode(), self._precision():
            ids, mask = padded([self.texts[i] for i in rows], self._length(rows), self.padding)
            self.model(input_ids=ids, attention_mask=mask).logits.float().numpy()
        found.add(time.perf_counter() - began, self.lengths[rows], ids.numel())


def peft_model(workload: Workload, materials: Materials) -> Any:
    """transformers' classifier with PEFT's adapter on it, at the weights that all sides start from."""
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    writes = workload.base.writes
    if writes:
        base = AutoModelForCausalLM.from_pretrained(materials.base, dtype=torch.float32)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(
            materials.base, dtype=torch.float32, num_labels=len(LABELS)
        )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM" if writes else "SEQ_CLS",
        r=workload.rank,
        lora_alpha=workload.alpha,
        target_modules=list(materials.targets),
        modules_to_save=list(materials.head) or None,
        fan_in_fan_out=workload.base.kind == "gpt2",
    )
    torch.manual_seed(SEED)
    model = peft.get_peft_model(base, config)
    state = load_file(materials.adapter)
    found = peft.set_peft_model_state_dict(model, state)
    if found.unexpected_keys or any("lora_" in key for key in found.missing_keys):
        raise RuntimeError(f"PEFT did not take the adapter's weights: {found}")
    return model


def random_batches(lengths: NDArray[np.int64], size: int, epoch: int) -> list[NDArray[np.int64]]:
    """The recipe's own batches: a random order for each epoch, the same as ours."""
    from veneer.training.schedule import Plan

    plan = Plan(len(lengths), size, 1, epoch + 1, SEED)
    first = epoch * plan.steps_per_epoch
    order = plan.epoch_order(epoch)
    assert np.array_equal(order[:size], plan.batches(first)[0])
    return [order[i : i + size] for i in range(0, len(order), size)]


def grouped_batches(lengths: NDArray[np.int64], size: int, epoch: int) -> list[NDArray[np.int64]]:
    """Random pieces of 50 batches, sorted by length inside; then the batches in a random order.

    The last shuffle is not transformers'; with it any stretch of batches is a fair sample of the epoch.
    """
    draw = np.random.default_rng([SEED, epoch])
    order, piece = draw.permutation(len(lengths)), _MEGABATCH * size
    pieces = (order[i : i + piece] for i in range(0, len(order), piece))
    ordered = np.concatenate([rows[np.argsort(-lengths[rows], kind="stable")] for rows in pieces])
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [batches[i] for i in draw.permutation(len(batches))]


def padded(texts: Sequence[NDArray[np.int64]], length: int, padding: int) -> tuple[Tensor, Tensor]:
    """(B, length) ids, padded on the right, and the mask of real tokens."""
    ids = np.full((len(texts), length), padding, np.int64)
    mask = np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
