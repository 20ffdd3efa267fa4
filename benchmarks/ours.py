"""Our side: the library's own training loop and prediction, nothing else."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.materials import LABELS, SEED, Materials, head_of
from benchmarks.side import Commands, Measured, SideSpec
from benchmarks.switches import mode_of, precision_of, rewired, without
from benchmarks.workloads import WORKLOADS, Workload
from veneer.data.ragged import Ragged
from veneer.data.tokens import TokenStore
from veneer.engine.prefix import PrefixStore, build_prefix, first_trained_block
from veneer.errors import Interrupted
from veneer.lora import LoraConfig, load_adapter_state_dict
from veneer.models import load_base
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.base import Targets, Task
from veneer.tasks.classification import Classification
from veneer.tasks.instructions import Instructions
from veneer.tasks.rendered import NOT_READ
from veneer.tasks.templates import ALPACA, Template
from veneer.training.config import TrainConfig
from veneer.training.loop import Examples, StepInfo, train_loop
from veneer.training.schedule import Plan

__all__ = ["Ours", "adapted_for"]

_EPOCHS = 10_000  # more than is ever measured


class Ours:
    """Veneer, maybe with some techniques switched off."""

    def __init__(self, spec: SideSpec) -> None:
        self.spec = spec
        self.workload = WORKLOADS[spec.workload]
        self.materials = Materials.from_json(spec.materials)
        ids, offsets, labels = self.materials.read_texts()
        lengths = np.diff(offsets).astype(np.int32)
        self.store = TokenStore(ids, offsets, lengths)
        self.labels: Targets = Ragged(labels, offsets) if self.workload.base.writes else labels

    def serve(self, commands: Commands) -> None:
        """Measure what is asked for."""
        with without(self.spec.off):
            adapted = adapted_for(self.workload, self.materials, self.spec.precision, self.spec.off)
            parameters = adapted.report.parameters.trainable
            tokens = int(self.store.lengths.sum())
            if not self.workload.train:
                commands.ready(tokens, parameters=parameters)
                while (steps := commands.next()) is not None:
                    commands.answer(self._predict(adapted, len(steps)))
                return
            with tempfile.TemporaryDirectory() as cache:
                prefix, seconds = self._prefix(adapted, cache)
                commands.ready(tokens, once_s=seconds, parameters=parameters)
                self._train(adapted, prefix, commands)

    def _predict(self, adapted: Adapted, times: int) -> Measured:
        found = Measured()
        for _ in range(times):
            began = time.perf_counter()
            adapted.outputs_of(self.store)
            lengths = self.store.lengths
            found.add(time.perf_counter() - began, lengths, int(lengths.sum()))
        return found

    def _prefix(self, adapted: Adapted, cache: str) -> tuple[PrefixStore | None, float]:
        """What is computed once for a whole run, as `veneer.training.prepare` does it, and how long that took."""
        program = adapted.runner.program
        if not self.workload.epochs or program is None or "prefix" in self.spec.off:
            return None, 0.0
        start = first_trained_block(program, adapted.model)
        if start == 0:
            return None, 0.0
        os.environ["VENEER_CACHE"] = cache  # nothing is there from an earlier run
        began = time.perf_counter()
        store = build_prefix(
            program,
            self.store,
            start,
            base_hash=adapted.base.content_hash,
            dtype=adapted.precision.dtype,
            device=adapted.device,
            causal=adapted.base.causal,
        )
        return store, time.perf_counter() - began

    def _train(self, adapted: Adapted, prefix: PrefixStore | None, commands: Commands) -> None:
        plan = Plan(len(self.store), self.workload.batch_size, 1, _EPOCHS, SEED)
        clock = _Clock(commands, plan, self.store, self.labels)
        if not clock.wait():
            return
        examples = Examples(self.store, self.labels, prefix)
        try:
            train_loop(
                adapted,
                examples,
                plan,
                _config(self.workload),
                evaluate=None,
                stopped=clock.wait_if_due,
                listener=clock,
            )
        except Interrupted:
            return  # the last command was done


class _Clock:
    """Listens to the training loop; holds it between the steps that are measured."""

    def __init__(self, commands: Commands, plan: Plan, store: TokenStore, labels: Targets) -> None:
        self.commands, self.plan, self.lengths, self.labels = commands, plan, store.lengths, labels
        self.steps = range(0)
        self.found = Measured()
        self.began = self.loss = self.seen = 0.0
        self.done = 0

    def wait(self) -> bool:
        """Wait for the next steps; False: there are none."""
        steps = self.commands.next()
        if steps is None:
            return False
        if steps.start != self.steps.stop:
            raise ValueError(
                f"steps {steps} were asked for after {self.steps}; they have to follow each other"
            )
        self.steps, self.found = steps, Measured()
        self.began = time.perf_counter()
        return True

    def wait_if_due(self) -> bool:
        """Asked by the loop after each step; True ends it."""
        if self.done < self.steps.stop:
            self.began = time.perf_counter()
            return False
        self.commands.answer(self.found)
        return not self.wait()

    def step(self, info: StepInfo) -> None:
        """A step is finished."""
        seconds = time.perf_counter() - self.began
        self.done = info.step
        (rows,) = self.plan.batches(info.step - 1)
        lengths, labelled = self.lengths[rows], labelled_of(self.labels, rows)
        loss = self._loss_of(info, len(rows) if labelled is None else labelled[0])
        self.found.add(seconds, lengths, int(lengths.sum()), loss, labelled)

    def entry(self, entry: Mapping[str, Any]) -> None:  # noqa: ARG002
        """The loop's mean loss begins again after an entry of its history."""
        self.loss = self.seen = 0.0

    def _loss_of(self, info: StepInfo, units: int) -> float:
        """The loss of this step alone, from the mean since the last entry."""
        total = info.loss * (self.seen + units)
        alone = (total - self.loss) / units
        self.loss, self.seen = total, self.seen + units
        return alone


def labelled_of(labels: Targets, rows: NDArray[np.int64]) -> tuple[int, int] | None:
    """How many tokens of these texts the loss reads, and how many tokens they see together; None for a classifier."""
    if not isinstance(labels, Ragged):
        return None
    places = [np.flatnonzero(labels[int(row)] != NOT_READ) for row in rows]
    return sum(len(found) for found in places), int(sum((found + 1).sum() for found in places))


def adapted_for(workload: Workload, materials: Materials, precision: str, off: tuple[str, ...]) -> Adapted:
    """The adapter on its base, at the weights that all sides start from."""
    base = load_base(materials.base, head=head_of(workload), seed=SEED)
    task: Task = Classification(labels=LABELS, pooling=base.pooling)
    if workload.base.writes:
        task = Instructions(Template("alpaca", ALPACA))
    adapted = adapt(
        base,
        task,
        _lora(workload, materials),
        precision=precision_of(off, precision),
        mode=mode_of(off),
        seed=SEED,
    )
    load_adapter_state_dict(adapted.model, load_file(materials.adapter))
    if not workload.train:
        adapted.model.eval()
    if adapted.runner.program is None and "packing" not in off:
        raise RuntimeError(f"what would be measured is not the engine: {adapted.runner.reason}")
    return rewired(adapted, off)


def _lora(workload: Workload, materials: Materials) -> LoraConfig:
    return LoraConfig(
        r=workload.rank,
        lora_alpha=workload.alpha,
        target_modules=materials.targets,
        modules_to_save=materials.head or None,
    )


def _config(workload: Workload) -> TrainConfig:
    """The settings that PEFT's side has: a constant rate, no clipping."""
    given = {
        "data": {"source": "benchmark"},
        "epochs": _EPOCHS,
        "batch_size": workload.batch_size,
        "learning_rate": workload.learning_rate,
        "weight_decay": workload.weight_decay,
        "schedule": "constant",
        "warmup": 0.0,
        "max_grad_norm": 0.0,
        "seed": SEED,
        "lora": {"r": workload.rank, "lora_alpha": workload.alpha},
    }
    return TrainConfig.parse(given, where="the benchmark")
