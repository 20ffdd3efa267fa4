"""A base, an adapter on it, and the task that the two solve together.

Training makes one from a configuration, everything else loads one from an adapter folder. Loading is strict: every
tensor accounted for, the base's hashes compared, the golden answers replayed.

This file joins the rooms below it; it knows no data file and no training.

Shapes: N examples, M features, B features of a batch, S places that the head reads, K outputs of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.adapter import Facts
from veneer.data.ragged import Ragged
from veneer.engine import PackedBatch, Precision, Runner, choose_precision
from veneer.engine.packing import Layout
from veneer.engine.precision import PrecisionName
from veneer.engine.prefix import PrefixStore
from veneer.lora import (
    AttachReport,
    LoraConfig,
    attach,
)
from veneer.models import Base, cast_frozen_
from veneer.tasks.base import Answer, Encoded, Input, Outputs, Task, TokenSequences, packed_rows
from veneer.tasks.encoding import encode_texts
from veneer.tasks.registry import kind_named
from veneer.tasks.rounded import round_base_

if TYPE_CHECKING:
    from veneer.tasks.kind import Kind
    from veneer.tasks.writing import Writer

__all__ = [
    "Adapted",
    "adapt",
]

_MAX_BATCH_TOKENS = 3072
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

    @property
    def kind(self) -> Kind:
        """The kind of its task."""
        return kind_named(self.task.name)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with the tokenizer's special tokens, cut to `max_length`."""
        return encode_texts(self.base.tokenizer, texts, self.max_length)

    def encode_inputs(self, inputs: Sequence[Input]) -> Encoded:
        """What `predict` takes, as tokens. Raises `DataError` for an input that lacks what the task reads."""
        return self.task.encode_inputs(inputs, self.base.tokenizer, self.max_length)

    def outputs(
        self,
        batch: PackedBatch,
        below: tuple[int, Tensor] | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """(B, K) or (S, K) outputs of the head, in packed order, float32, differentiable in the adapter.

        Args:
            batch: B features.
            below: the states before a block, where they are kept (see `veneer.engine.prefix`).
            targets: what the task's `collate` made, where they are known.
        """
        states = self.runner.hidden_states(batch, self.task.reads(batch.layout, targets), below)
        return self.task.outputs(self.model, states, batch.layout, targets)

    def outputs_of(
        self,
        sequences: TokenSequences,
        *,
        rows: NDArray[np.int64] | None = None,
        prefix: PrefixStore | None = None,
        progress: Progress | None = None,
    ) -> Outputs:
        """Outputs for many features, without gradients, in their order; batches of similar length.

        Args:
            sequences: M features; an `Encoded` with its token types and targets, or bare token ids.
            rows: which of them; None: all.
            prefix: what is kept of the texts.
            progress: called with the features done, and all.

        Returns:
            (M, K) float32, or a `Ragged` of (S, K) for each feature, where the task gives a row for each token.
        """
        rows = np.arange(len(sequences)) if rows is None else rows
        if self.task.per == "text":
            return self._dense(sequences, rows, self.task.outputs, prefix, progress)
        found: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(rows)
        with torch.inference_mode():
            for places, batch, states, targets in self._batches(sequences, rows, prefix, progress):
                part = self.task.outputs(self.model, states, batch.layout, targets).float().cpu().numpy()
                ends = np.cumsum(_reads_of_each(batch.layout, self.task.reads(batch.layout, targets)))
                for place, own in zip(places.tolist(), np.split(part, ends[:-1]), strict=True):
                    found[place] = own
        return (
            Ragged.of(found, np.float32)
            if found
            else Ragged(np.zeros((0, 0), np.float32), np.zeros(1, np.int64))
        )

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

        def reading(model: nn.Module, states: Tensor, layout: Layout, targets: Tensor | None) -> Tensor:  # noqa: ARG001
            return read(states, layout)

        return self._dense(sequences, rows, reading, prefix, progress)

    def _dense(
        self,
        sequences: TokenSequences,
        rows: NDArray[np.int64],
        read: Callable[[nn.Module, Tensor, Layout, Tensor | None], Tensor],
        prefix: PrefixStore | None,
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        found: NDArray[np.float32] | None = None
        with torch.inference_mode():
            for places, batch, states, targets in self._batches(sequences, rows, prefix, progress):
                part = read(self.model, states, batch.layout, targets).float().cpu().numpy()
                if found is None:
                    found = np.empty((len(rows), *part.shape[1:]), np.float32)
                found[places] = part
        return np.zeros((0, 0), np.float32) if found is None else found

    def _batches(
        self,
        sequences: TokenSequences,
        rows: NDArray[np.int64],
        prefix: PrefixStore | None,
        progress: Progress | None,
    ) -> Iterator[tuple[NDArray[np.int64], PackedBatch, Tensor, Tensor | None]]:
        """Batch by batch: places among `rows` in packed order, the batch, the states that the task reads, targets."""
        lengths = np.asarray(sequences.lengths, dtype=np.int64)[rows]
        known = sequences.targets if isinstance(sequences, Encoded) else None
        done = 0
        for places in length_batches(lengths):
            texts = rows[places]
            packed = packed_rows(sequences, texts)
            order = list(packed.order)
            batch = packed.to(self.device)
            below = None if prefix is None else prefix.below(texts[order], self.device)
            targets = None if known is None else self.task.collate(known[texts[order]]).to(self.device)
            reads = self.task.reads(batch.layout, targets)
            yield places[order], batch, self.runner.hidden_states(batch, reads, below), targets
            done += len(places)
            if progress is not None:
                progress(done, len(rows))

    def predict(self, inputs: Sequence[Input]) -> list[Answer]:
        """An answer for each input (a text, or texts by name, as the task takes them), in order.

        Raises:
            TypeError: one string was given, not a sequence of them.
            DataError: an input lacks what the task reads.
        """
        if isinstance(inputs, str):
            raise TypeError(
                "predict() takes a sequence of texts; put the one text into a list: predict([text])"
            )
        if not inputs:
            return []
        encoded = self.encode_inputs(inputs)
        if self.kind.answer is not None:
            return self.kind.answer(self, encoded)
        return self.task.answers(self.outputs_of(encoded), encoded)

    def generate(self, prompts: Sequence[Any], **settings: Any) -> list[str]:
        """What the model writes for each prompt, in order; more of each answer by `veneer.tasks.writing.Writer`.

        Args:
            prompts: texts, rows ({"instruction": ..., "input": ...}) or conversations (lists of messages).
            settings: fields of `veneer.engine.generation.Sampling`; `adapter=False`: the base alone; `raw=True`: texts
                that go on as they stand, without the template.

        Raises:
            UserMistake: the adapter is for a task that writes no text.
            ConfigError, DataError: a setting that can't be; a prompt that is empty or too long.
        """
        return [answer.text for answer in self._writer.generate(prompts, **settings)]

    def stream(self, prompt: Any, **settings: Any) -> Iterator[str]:
        """The answer to one prompt, piece by piece, in whole characters. See `generate`."""
        return (piece.text for piece in self._writer.stream(prompt, **settings) if piece.text)

    @cached_property
    def _writer(self) -> Writer:
        from veneer.tasks.writing import writer_of  # it is made of an `Adapted`

        return writer_of(self)


def _reads_of_each(layout: Layout, reads: Tensor | None) -> NDArray[np.int64]:
    """(B,) how many places of each feature are read."""
    if reads is None:
        return np.asarray(layout.lengths, np.int64)
    return torch.bincount(layout.text_of_token[reads], minlength=len(layout.lengths)).cpu().numpy()


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
        ConfigError: `precision` is int8 and the adapter needs whole weights.
    """
    device = torch.device(device)
    if isinstance(precision, str):
        precision = choose_precision(precision, device)
    model = base.model
    report = attach(model, lora, seed=seed, strict=strict)
    precision = round_base_(base, precision)
    runner = Runner.of(model, mode=mode)
    if precision.dtype is not torch.float32:
        runner.forget_()
    cast_frozen_(model, precision.dtype, keep=base.float32_modules)
    model.to(device)
    limit = base.max_length if max_length is None else min(max_length, base.max_length)
    return Adapted(base, runner, task, lora, report, limit, precision)


def length_batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows in batches of similar length, the longest first (so that a lack of memory shows at once).

    A batch is filled with as many tokens as it takes, so that most have about the same number of them; padded to its
    longest text it takes no more than twice as many.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    batches, start, before = [], 0, 0
    while start < len(order):
        fitting = int(np.searchsorted(ends, before + _MAX_BATCH_TOKENS)) - start  # fewer tokens than that
        padded = 2 * _MAX_BATCH_TOKENS // max(1, int(lengths[order[start]]))
        stop = start + max(1, min(_MAX_BATCH_TEXTS, fitting, padded))
        batches.append(order[start:stop])
        start, before = stop, int(ends[stop - 1])
    return batches
