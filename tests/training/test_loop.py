"""The loop against a plain one written here with torch's own optimiser and the padded computation.

Tolerance 1e-5 for weights after a few steps: AdamW divides by the root of a gradient squared, so a rounding of a small
gradient moves a weight by up to its learning rate times that rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from small_runs import config
from veneer.engine import Runner, pack
from veneer.errors import ConfigError, Interrupted, VeneerError
from veneer.lora import adapter_parameters
from veneer.training.checkpoint import Checkpoint
from veneer.training.config import TrainConfig
from veneer.training.loop import Trained, train_loop
from veneer.training.optimizer import make_optimizer
from veneer.training.prepare import Run, set_up
from veneer.training.schedule import rate_factor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


def weights_of(run: Run) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in adapter_parameters(run.adapted.model)}


def trained(given: TrainConfig, **options: Any) -> tuple[dict[str, Tensor], Trained]:
    run = set_up(given)
    state = train_loop(run.adapted, run.examples, run.plan, run.config, **({"evaluate": None} | options))
    return weights_of(run), state


def plainly(given: TrainConfig) -> dict[str, Tensor]:
    """The same run, written out: padded, one optimiser of torch's without fusing, clipping by its formula."""
    run = set_up(given)
    model, plan, settings = run.adapted.model, run.plan, run.config
    runner, task = Runner.of(model, mode="padded"), run.adapted.task
    named = adapter_parameters(model)
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, foreach=False, fused=False)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_factor(
                step, plan.steps, settings.warmup, settings.schedule
            )
        rows = np.concatenate(plan.batches(step))
        batch = pack([run.examples.ids[int(row)] for row in rows])
        states = runner.hidden_states(batch, task.reads(batch.layout))
        targets = task.collate(run.examples.targets[rows[list(batch.order)]])
        task.loss(task.outputs(model, states, batch.layout), targets).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for _, p in named if p.grad is not None))
        if settings.max_grad_norm > 0:
            for _, p in named:
                if p.grad is not None:
                    p.grad.mul_(min(1.0, settings.max_grad_norm / (norm + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(run)


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "decoder": {"kind": "gpt2"},
    "accumulation": {"batch_size": 3, "gradient_accumulation": 4},
    "weights and smoothing": {"class_weights": "balanced", "label_smoothing": 0.1},
    "no clipping": {"max_grad_norm": 0},
    "hard clipping": {"max_grad_norm": 0.01, "schedule": "cosine"},
    "decay": {"weight_decay": 0.5, "schedule": "constant", "warmup": 0},
    "some layers": {"lora": {"r": 2, "target_modules": ["query"], "bias": "lora_only"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_is_the_run_written_out(place: Path, name: str) -> None:
    given = config(place, **SETTINGS[name])
    found, state = trained(given)
    expected = plainly(given)
    assert state.step == set_up(given).plan.steps
    assert max(float((found[n] - w).abs().max()) for n, w in weights_of(set_up(given)).items()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"class_weights": "balanced"}])
def test_accumulated_batches_are_one_big_batch(place: Path, more: dict[str, Any]) -> None:
    one, _ = trained(config(place, batch_size=12, **more))
    many, _ = trained(config(place, batch_size=3, gradient_accumulation=4, **more))
    torch.testing.assert_close(many, one, rtol=0, atol=1e-6)


def test_checkpointing_gives_the_same_bits(place: Path) -> None:
    kept, _ = trained(config(place))
    again, _ = trained(config(place, gradient_checkpointing=True))
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_checkpointing_a_base_without_blocks_of_ours_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"gradient_checkpointing.*gradient_accumulation"):
        set_up(config(place, gradient_checkpointing=True, mode="padded"))


def test_the_last_rate_of_a_step_is_that_of_the_schedule(place: Path) -> None:
    given = config(place, epochs=6, learning_rate=1e-2)
    _, state = trained(given)
    plan = set_up(given).plan
    for entry in state.history:
        assert entry["rate"] == given.learning_rate * rate_factor(
            entry["step"] - 1, plan.steps, given.warmup, given.schedule
        )
    assert state.texts == plan.examples * 6
    losses = [entry["loss"] for entry in state.history]
    assert losses[-1] < 0.9 * losses[0]


def test_biases_and_vectors_are_not_decayed(place: Path) -> None:
    run = set_up(config(place, weight_decay=0.3))
    named = dict(adapter_parameters(run.adapted.model))
    optimizer = make_optimizer(
        named, learning_rate=run.config.learning_rate, weight_decay=run.config.weight_decay
    )
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in named.items()} == {
        name: 0.3 if p.ndim > 1 else 0.0 for name, p in named.items()
    }
    assert {0.3, 0.0} == set(decay.values())


def test_a_loss_that_is_no_number_ends_the_run_with_the_mend(place: Path) -> None:
    given = config(place, learning_rate=1e30, max_grad_norm=0, warmup=0)
    with pytest.raises(
        VeneerError, match=r"The loss is \S+ at step \d+: .* Lower learning_rate \(now 1e\+30\)"
    ):
        trained(given)


class Scores:
    """An evaluation that gives these scores, one after the other."""

    def __init__(self, run: Run, scores: list[float], error: float = 0.0) -> None:
        self.run, self.scores, self.error = run, iter(scores), error
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self) -> Mapping[str, Any]:
        self.weights.append(weights_of(self.run))
        assert not self.run.adapted.model.training
        score = next(self.scores)
        return {"loss": 1 - score, "score_name": "accuracy", "score": score, "standard_error": self.error}


@pytest.mark.parametrize(
    ("scores", "options", "evaluations", "kept"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.2], {"patience": 2}, 4, 1),
        ([0.1, 0.5, 0.4, 0.6, 0.2], {"patience": 2}, 5, 3),
        ([0.1, 0.9, 0.4, 0.3, 0.2], {}, 5, 1),
        ([0.1, 0.9, 0.4, 0.3, 0.2], {"keep": "last"}, 5, 4),
        ([0.1, 0.2, 0.2, 0.2, 0.2], {}, 5, 1),
        ([0.9, 0.1, 0.1], {"patience": 1}, 2, 0),
    ],
)
def test_the_best_evaluation_is_kept_and_patience_ends_the_run(
    place: Path, scores: list[float], options: dict[str, Any], evaluations: int, kept: int
) -> None:
    given = {"keep": "best"} | options
    run = set_up(config(place, epochs=5, **given))
    evaluate = Scores(run, scores)
    state = train_loop(run.adapted, run.examples, run.plan, run.config, evaluate=evaluate)
    entries = [entry for entry in state.history if entry["kind"] == "evaluation"]
    assert len(entries) == evaluations
    assert state.best_step == entries[scores.index(max(scores[:evaluations]))]["step"]
    torch.testing.assert_close(weights_of(run), evaluate.weights[kept], rtol=0, atol=0)
    assert not run.adapted.model.training


@pytest.mark.parametrize(("error", "kept"), [(0.05, 2), (0.2, 4)])
def test_auto_keeps_the_last_unless_an_earlier_one_is_clearly_better(
    place: Path, error: float, kept: int
) -> None:
    run = set_up(config(place, epochs=5))
    evaluate = Scores(run, [0.5, 0.6, 0.9, 0.7, 0.8], error)
    state = train_loop(run.adapted, run.examples, run.plan, run.config, evaluate=evaluate)
    torch.testing.assert_close(weights_of(run), evaluate.weights[kept], rtol=0, atol=0)
    entries = [entry for entry in state.history if entry["kind"] == "evaluation"]
    assert state.kept_step == entries[kept]["step"]


def test_of_two_equal_scores_the_smaller_loss_is_better(place: Path) -> None:
    run = set_up(config(place, epochs=3, keep="best"))
    evaluate = Scores(run, [0.5, 0.5, 0.5])
    losses = iter([0.3, 0.1, 0.2])
    state = train_loop(
        run.adapted, run.examples, run.plan, run.config, evaluate=lambda: {**evaluate(), "loss": next(losses)}
    )
    torch.testing.assert_close(weights_of(run), evaluate.weights[1], rtol=0, atol=0)
    assert state.best_loss == 0.1


def test_evaluations_come_when_asked_for(place: Path) -> None:
    run = set_up(config(place, epochs=2, eval_every=4))
    state = train_loop(run.adapted, run.examples, run.plan, run.config, evaluate=Scores(run, [0.1] * 9))
    steps = [entry["step"] for entry in state.history if entry["kind"] == "evaluation"]
    assert steps == [*range(4, run.plan.steps, 4), run.plan.steps]


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoder": {"kind": "gpt2"},
    "adapter dropout": {"lora": {"r": 2, "lora_dropout": 0.3}},
    "base dropout": {"base_dropout": True},
    "both, accumulated": {
        "base_dropout": True, "lora": {"r": 2, "lora_dropout": 0.3}, "batch_size": 3, "gradient_accumulation": 2,
    },
    "padded": {"mode": "padded"},
    "bf16": {"precision": "bf16"},
    "frozen prefix": {"lora": {"r": 2, "target_modules": ["query", "value"], "layers_to_transform": [1]}},
    "keep last": {"keep": "last"},
    "patience": {"keep": "best", "patience": 2, "eval_every": 2},
}  # fmt: skip


def same_history(one: Trained, other: Trained) -> None:
    def timeless(state: Trained) -> list[dict[str, Any]]:
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in state.history]

    assert timeless(one) == timeless(other)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_goes_on_from_any_checkpoint_ends_bit_for_bit_the_same(
    place: Path, tmp_path: Path, name: str
) -> None:
    from veneer.training.checkpoint import latest_checkpoint, save_checkpoint

    given = config(place, **({"epochs": 2, "batch_size": 8} | RESUMED[name]))

    def go(start: Checkpoint | None, stop: int | None) -> tuple[dict[str, Tensor], Trained | None]:
        torch.rand(3)  # torch's random state must not count
        run = set_up(given)
        steps: list[int] = []

        def evaluate() -> dict[str, Any]:
            outputs = run.adapted.outputs_of(run.stores["validation"])
            decided = run.adapted.task.score(outputs, run.stores["validation"])
            assert isinstance(outputs, np.ndarray)
            return {"loss": float(np.abs(outputs).mean()), "score_name": "accuracy", "score": decided.value}

        def stopped() -> bool:
            steps.append(1)
            return stop is not None and len(steps) == stop

        state = None
        try:
            state = train_loop(
                run.adapted, run.examples, run.plan, run.config, evaluate=evaluate, start=start,
                store=lambda c: save_checkpoint(tmp_path, c) and None, stopped=stopped,
            )  # fmt: skip
        except Interrupted:
            assert stop is not None
        return weights_of(run), state

    expected, whole = go(None, None)
    assert whole is not None
    start = None
    for _ in range(4):  # every second step a new process, so to say
        go(start, 2)
        start = latest_checkpoint(tmp_path, {})
        assert start is not None
        if start.step >= whole.step - 2:
            break
    found, resumed = go(start, None)
    assert resumed is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    same_history(whole, resumed)
    assert (resumed.step, resumed.texts, resumed.tokens) == (whole.step, whole.texts, whole.tokens)


def test_dropout_is_there_and_follows_the_seed(place: Path) -> None:
    plain, _ = trained(config(place))
    for options in ({"lora": {"r": 4, "lora_dropout": 0.3}}, {"base_dropout": True}):
        dropped, _ = trained(config(place, **options))
        again, _ = trained(config(place, **options))
        torch.testing.assert_close(dropped, again, rtol=0, atol=0)
        assert any(not torch.equal(dropped[name], plain[name]) for name in plain)


def test_the_base_is_never_touched(place: Path) -> None:
    run = set_up(config(place))
    model = run.adapted.model
    names = {name for name, _ in model.named_parameters()} - {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    before = {name: copy.deepcopy(model.get_parameter(name).detach()) for name in names}
    train_loop(run.adapted, run.examples, run.plan, run.config, evaluate=None)
    assert len(before) > 20
    torch.testing.assert_close({n: model.get_parameter(n).detach() for n in names}, before, rtol=0, atol=0)
