"""The training loop: batches in, gradients of A, B and head out, the best adapter kept.

    trained = train_loop(adapted, examples, plan, settings, evaluate=..., store=...)

What comes next follows from the step alone (see `schedule`), so the loop can stop after any step and go on to the same
bits. This file knows an `Adapted` and its task's protocol; it knows no file, no data format and no terminal.

Shapes: B features of a batch, K outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from veneer.engine.prefix import PrefixStore
from veneer.errors import Interrupted, VeneerError
from veneer.lora import LoraEmbedding, LoraLinear, adapter_parameters
from veneer.naming import setting
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import Targets, TokenSequences, packed_rows
from veneer.training.checkpoint import Checkpoint
from veneer.training.config import TrainConfig
from veneer.training.optimizer import (
    load_weights_,
    make_optimizer,
    optimizer_tensors,
    restore_,
    share_gradients_,
)
from veneer.training.schedule import Plan, rate_factor

__all__ = ["Examples", "Listener", "StepInfo", "Trained", "train_loop"]


@dataclass(frozen=True)
class Examples:
    """What is trained on: token ids and targets of each feature; and the kept prefix of the texts, if there is one."""

    ids: TokenSequences
    targets: Targets
    prefix: PrefixStore | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class StepInfo:
    """Where a run is: for a progress line.

    Attributes:
        step, steps: finished steps, and all.
        loss: mean over the texts since the last entry of the history.
        rate: learning rate of this step.
        texts_per_s, tokens_per_s: of the training time alone, evaluations left out.
        seconds_left: of training.
        metric: name and value of the last evaluation's deciding score, or None.
    """

    step: int
    steps: int
    loss: float
    rate: float
    texts_per_s: float
    tokens_per_s: float
    seconds_left: float
    metric: tuple[str, float] | None


class Listener(Protocol):
    """Whoever wants to know how the run goes."""

    def step(self, info: StepInfo) -> None:
        """After each step."""
        ...

    def entry(self, entry: Mapping[str, Any]) -> None:
        """After each new entry of the history."""
        ...


@dataclass
class Trained:
    """The state of the loop, and its result.

    Attributes:
        step: finished steps.
        history: entries of kind "train" (loss, rate) and "evaluation" (loss and score on the validation texts).
        best: weights of the best evaluation.
        best_score, best_loss, best_step: its figures.
        worse: evaluations since the best one.
        kept_step: the step whose weights the model has in the end.
        train_seconds, evaluation_seconds, texts, tokens: what it took so far.
        window: sum of loss * units, and units (texts, or labelled tokens), since the last entry.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: float | None = None
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0
    kept_step: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    texts: int = 0
    tokens: int = 0
    window: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def progress(self) -> dict[str, Any]:
        """All of it but the weights, as JSON values."""
        return {key: value for key, value in vars(self).items() if key not in ("step", "best")}


Evaluate = Callable[[], Mapping[str, Any]]
Store = Callable[[Checkpoint], None]


def train_loop(
    adapted: Adapted,
    examples: Examples,
    plan: Plan,
    config: TrainConfig,
    *,
    evaluate: Evaluate | None,
    store: Store | None = None,
    start: Checkpoint | None = None,
    identity: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    listener: Listener | None = None,
    accelerator: Any = None,
) -> Trained:
    """Train until the plan is done or the evaluations get no better; the model ends with the weights to keep.

    Args:
        adapted: what to train, in place.
        examples: token ids and targets.
        plan: order and number of steps.
        config: rates, decay, clipping, evaluation rhythm.
        evaluate: gives {"loss", "score_name", "score"} and more on the validation texts; None: there are none.
        store: takes a checkpoint every `config.checkpoint_every_s` seconds, and when stopped.
        start: where to go on from.
        identity: what a checkpoint has to agree with.
        stopped: asked after each step; True: store, then raise `Interrupted`.
        listener: told of steps and entries.
        accelerator: accelerate's `Accelerator`, for several processes; None: this process alone.

    Raises:
        Interrupted: `stopped` said so; the state was stored.
        VeneerError: the loss is not finite any more.
    """
    weights = dict(adapter_parameters(adapted.model))
    optimizer = make_optimizer(weights, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    state = Trained()
    if start is not None:
        restore_(weights, optimizer, start.weights, start.optimizer)
        state = Trained(step=start.step, best=start.best, **start.progress)
    stored_at = time.monotonic()

    def checkpoint() -> None:
        if store is not None:
            tensors = {name: p.detach() for name, p in weights.items()}
            moments = optimizer_tensors(weights, optimizer)
            store(
                Checkpoint(state.step, dict(identity or {}), tensors, moments, state.best, state.progress())
            )

    set_mode_(adapted.model, config)
    while state.step < plan.steps:
        began = time.perf_counter()
        _step(adapted, examples, plan, config, weights, optimizer, state, accelerator)
        state.train_seconds += time.perf_counter() - began
        _report(state, plan, config, listener)
        due = state.step % (config.eval_every or plan.steps_per_epoch) == 0 or state.step == plan.steps
        if due and evaluate is not None:
            _evaluate(adapted.model, plan, state, weights, evaluate, listener)
            set_mode_(adapted.model, config)
            if config.patience is not None and state.worse >= config.patience:
                break
        if stopped():
            checkpoint()
            raise Interrupted(
                f"Stopped after step {state.step} of {plan.steps}; everything up to it is saved."
            )
        if time.monotonic() - stored_at > config.checkpoint_every_s:
            checkpoint()
            stored_at = time.monotonic()
    _keep_(weights, state, config, finished=state.step >= plan.steps)
    adapted.model.eval()
    return state


def _keep_(
    weights: Mapping[str, nn.Parameter], state: Trained, config: TrainConfig, *, finished: bool
) -> None:
    """Leave the weights to keep in the model.

    "auto" keeps the last ones, at the end of the schedule, unless an earlier evaluation was better by more than a
    standard error of the score: with few validation texts the best of many evaluations is the luckiest, not the best.
    A run that stopped early keeps the best.
    """
    state.kept_step = state.step
    evaluations = [entry for entry in state.history if entry["kind"] == "evaluation"]
    if not evaluations or state.best_score is None or config.keep == "last":
        return
    ahead = state.best_score - evaluations[-1]["score"]
    if config.keep == "best" or not finished or ahead > evaluations[-1].get("standard_error", 0.0):
        load_weights_(weights, state.best)
        state.kept_step = state.best_step


def set_mode_(model: nn.Module, config: TrainConfig) -> None:
    """Dropout where it was asked for only: the adapter's own always, the frozen base's with `base_dropout`."""
    model.train(config.base_dropout)
    if config.lora["lora_dropout"] > 0 and not config.base_dropout:
        for module in model.modules():
            if isinstance(module, LoraLinear | LoraEmbedding):
                module.training = True


def _step(
    adapted: Adapted,
    examples: Examples,
    plan: Plan,
    config: TrainConfig,
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Trained,
    accelerator: Any,
) -> None:
    """One step of the optimiser, over `plan.accumulation` batches, shared among the processes."""
    # Dropout follows from the step. `torch.manual_seed` writes down its caller for devices that are not there: 0.4 ms.
    device = adapted.device
    seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seed((plan.seed * 1_000_003 + state.step) % 2**63)
    rate = config.learning_rate * rate_factor(state.step, plan.steps, config.warmup, config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = rate
    batches = plan.batches(state.step)
    task = adapted.task
    units = sum(task.units(examples.targets[rows]) for rows in batches)  # texts, or labelled tokens
    loss_sum = torch.zeros((), device=device)
    for whole in batches:
        rows = whole if accelerator is None else whole[accelerator.process_index :: accelerator.num_processes]
        own = task.units(examples.targets[rows]) if len(rows) else 0
        if own == 0:
            continue
        batch = packed_rows(examples.ids, rows)
        packed = rows[list(batch.order)]
        targets = task.collate(examples.targets[packed]).to(device)
        batch = batch.to(device)
        below = None if examples.prefix is None else examples.prefix.below(packed, device)
        loss = task.loss(adapted.outputs(batch, below, targets), targets, batch.layout)
        (loss * (own / units)).backward()
        loss_sum += loss.detach() * own
        state.tokens += batch.tokens
    if accelerator is not None and accelerator.num_processes > 1:
        share_gradients_(weights, accelerator)
        loss_sum = accelerator.reduce(loss_sum, "sum")
    if config.max_grad_norm > 0:
        nn.utils.clip_grad_norm_(list(weights.values()), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    total = float(loss_sum)
    if not math.isfinite(total):
        clipped = "" if 0 < config.max_grad_norm <= 1 else f", or give {setting('max_grad_norm', 1)}"
        raise VeneerError(
            f"The loss is {total} at step {state.step + 1}: training has diverged. Lower {setting('learning_rate')} "
            f"(now {config.learning_rate:g}){clipped}."
        )
    state.step += 1
    state.texts += sum(len(rows) for rows in batches)
    state.window[0] += total
    state.window[1] += units


def _report(state: Trained, plan: Plan, config: TrainConfig, listener: Listener | None) -> None:
    """Tell the listener, and write a "train" entry about fifty times a run and at each epoch's end."""
    loss = state.window[0] / max(1.0, state.window[1])
    rate = config.learning_rate * rate_factor(state.step - 1, plan.steps, config.warmup, config.schedule)
    if listener is not None:
        per_step = state.train_seconds / max(1, state.step)
        scores = [e for e in state.history if e["kind"] == "evaluation"]
        info = StepInfo(
            step=state.step,
            steps=plan.steps,
            loss=loss,
            rate=rate,
            texts_per_s=state.texts / state.train_seconds,
            tokens_per_s=state.tokens / state.train_seconds,
            seconds_left=per_step * (plan.steps - state.step),
            metric=(scores[-1]["score_name"], scores[-1]["score"]) if scores else None,
        )
        listener.step(info)
    every = max(1, plan.steps // 50)
    if state.step % every == 0 or state.step % plan.steps_per_epoch == 0:
        _add(state, plan, {"kind": "train", "loss": loss, "rate": rate}, listener)
        state.window = [0.0, 0.0]


def _evaluate(
    model: nn.Module,
    plan: Plan,
    state: Trained,
    weights: Mapping[str, nn.Parameter],
    evaluate: Evaluate,
    listener: Listener | None,
) -> None:
    model.eval()
    began = time.perf_counter()
    found = dict(evaluate())
    state.evaluation_seconds += time.perf_counter() - began
    score, loss = float(found["score"]), float(found["loss"])
    better = state.best_score is None or (score, -loss) > (state.best_score, -state.best_loss)
    if better:
        state.best = {name: p.detach().clone() for name, p in weights.items()}
        state.best_score, state.best_loss, state.best_step = score, loss, state.step
    state.worse = 0 if better else state.worse + 1
    _add(state, plan, {"kind": "evaluation", **found, "best": better}, listener)


def _add(state: Trained, plan: Plan, entry: dict[str, Any], listener: Listener | None) -> None:
    where = {
        "step": state.step,
        "epoch": round(state.step / plan.steps_per_epoch, 4),
        "examples": state.texts,
        "seconds": round(state.train_seconds + state.evaluation_seconds, 3),
    }
    state.history.append(where | entry)
    if listener is not None:
        listener.entry(state.history[-1])
