"""The sources' training loop: AdamW, an evaluation every so many steps, accuracies after each epoch.

Plain on purpose, so that a reproduction can be read beside its source; `veneer.training` is the one to train with.
It gets functions from row numbers to a loss or to logits, and knows neither what the rows are nor how they are
computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.errors import VeneerError
from veneer.evaluation.curves import HistoryPoint
from veneer.recipes.options import Say
from veneer.training.schedule import rate_factor

__all__ = ["Fit", "Plan", "Rows", "Task", "accuracy", "fit", "mean_loss"]

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """A set of rows and how a model answers them.

    Attributes:
        labels: (n,) int64.
        logits: row numbers (B,) -> (B, 2), differentiable.
    """

    labels: Rows
    logits: Callable[[Rows], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def loss(self, rows: Rows) -> Tensor:
        """Cross-entropy, the mean over these rows."""
        return nn.functional.cross_entropy(self.logits(rows), torch.from_numpy(self.labels[rows]))


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        epochs, batch_size, learning_rate, weight_decay: as they say.
        drop_last: leave the last, incomplete batch of an epoch out.
        falling: the rate rises over a tenth of the steps and falls to 0; else it is constant.
        eval_every: steps between evaluations of the losses; None: none.
        max_steps: stop then.
        seed: of the order.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    drop_last: bool = False
    falling: bool = False
    eval_every: int | None = None
    max_steps: int | None = None
    seed: int = 0

    def batches_per_epoch(self, rows: int) -> int:
        """Of a training set of so many rows."""
        return rows // self.batch_size if self.drop_last else math.ceil(rows / self.batch_size)

    def steps(self, rows: int) -> int:
        """In all."""
        whole = self.epochs * self.batches_per_epoch(rows)
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def batches(self, rows: int) -> Iterator[tuple[int, Rows]]:
        """The number of the epoch, from 0, and the rows of each step."""
        count, done = self.batches_per_epoch(rows), 0
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(rows)
            for i in range(count):
                if done == self.steps(rows):
                    return
                yield epoch, order[i * self.batch_size : (i + 1) * self.batch_size]
                done += 1


@dataclass
class Fit:
    """What a run gave.

    Attributes:
        steps, examples: done and seen.
        train_seconds: of the steps alone; `seconds` with the evaluations between them.
        history: losses.
        epochs: what `after_epoch` gave.
    """

    steps: int = 0
    examples: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    history: list[HistoryPoint] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def examples_per_s(self) -> float:
        """Of the steps alone."""
        return self.examples / max(self.train_seconds, 1e-9)


def fit(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    train: Task,
    validation: Task,
    plan: Plan,
    say: Say,
    *,
    after_epoch: Callable[[], dict[str, Any]] | None = None,
) -> Fit:
    """Train `parameters`, in place. `model` is only switched between train and eval mode.

    The seed decides the order and the dropout; torch's global state is left as it was.

    Raises:
        VeneerError: the loss is not finite any more.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return _fit(model, parameters, train, validation, plan, say, after_epoch)


def _fit(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    train: Task,
    validation: Task,
    plan: Plan,
    say: Say,
    after_epoch: Callable[[], dict[str, Any]] | None,
) -> Fit:
    began, run = time.perf_counter(), Fit()
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    steps, per_epoch, n = plan.steps(len(train)), plan.batches_per_epoch(len(train)), len(train)
    for epoch, rows in plan.batches(n):
        if plan.falling:
            rate = plan.learning_rate * rate_factor(run.steps, steps, 0.1, "linear")
            optimizer.param_groups[0]["lr"] = rate
        started = time.perf_counter()
        model.train()
        optimizer.zero_grad()
        loss = train.loss(rows)
        loss.backward()
        optimizer.step()
        run.train_seconds += time.perf_counter() - started
        run.examples += len(rows)
        if not math.isfinite(loss.item()):
            raise VeneerError(
                f"The loss is {loss.item()} after step {run.steps + 1}. Lower the learning rate."
            )
        if plan.eval_every and run.steps % plan.eval_every == 0:
            model.eval()
            run.history.append(_losses(run, train, validation, plan, per_epoch))
            say(_line(run.history[-1], epoch, run))
        run.steps += 1
        if after_epoch is not None and run.steps in (steps, (epoch + 1) * per_epoch):
            model.eval()
            run.epochs.append({"epoch": run.steps / per_epoch, "examples": run.examples} | after_epoch())
    model.eval()
    run.seconds = time.perf_counter() - began
    return run


def accuracy(task: Task, *, batch_size: int, batches: int | None = None) -> float:
    """The share of rows whose likelier label is the right one; of the first `batches` batches, or of all."""
    right = seen = 0
    for rows in _in_order(len(task), batch_size, batches):
        with torch.no_grad():
            guessed = task.logits(rows).argmax(dim=1).numpy()
        right += int((guessed == task.labels[rows]).sum())
        seen += len(rows)
    return right / seen


def mean_loss(task: Task, *, batch_size: int, batches: int) -> float:
    """The mean of the first batches' losses."""
    with torch.no_grad():
        losses = [task.loss(rows).item() for rows in _in_order(len(task), batch_size, batches)]
    return sum(losses) / len(losses)


def _in_order(n: int, size: int, batches: int | None) -> Iterator[Rows]:
    stop = n if batches is None else min(n, batches * size)
    for start in range(0, stop, size):
        yield np.arange(start, min(start + size, stop), dtype=np.int64)


def _losses(run: Fit, train: Task, validation: Task, plan: Plan, per_epoch: int) -> HistoryPoint:
    sizes = {"batch_size": plan.batch_size, "batches": 5}
    return HistoryPoint(
        step=run.steps,
        epoch=run.steps / per_epoch,
        examples=run.examples,
        train_loss=mean_loss(train, **sizes),
        val_loss=mean_loss(validation, **sizes),
    )


def _line(point: HistoryPoint, epoch: int, run: Fit) -> str:
    return (
        f"epoch {epoch + 1}, step {point.step:>5,}: training loss {point.train_loss:.3f}, validation loss "
        f"{point.val_loss:.3f} ({run.examples_per_s:.1f} examples/s)"
    )
