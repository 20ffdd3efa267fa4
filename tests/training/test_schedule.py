"""Order and rate as functions of the step alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from veneer.training.schedule import Plan, default_batch_size, default_epochs, rate_factor

PLANS = st.builds(
    Plan,
    examples=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize(
    ("texts", "tokens", "size"), [(999, 9_990, 16), (1_000, 20_000, 32), (1_000, 64_001, 16)]
)
def test_many_short_texts_make_larger_batches(texts: int, tokens: int, size: int) -> None:
    assert default_batch_size(texts, tokens) == size


@given(PLANS)
def test_every_epoch_reads_every_text_once(plan: Plan) -> None:
    for epoch in range(plan.epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([rows for step in steps for rows in plan.batches(step)])
        assert sorted(seen.tolist()) == list(range(plan.examples))
    assert plan.steps == plan.epochs * plan.steps_per_epoch


@given(PLANS)
def test_batches_have_their_size(plan: Plan) -> None:
    for step in range(plan.steps):
        sizes = [len(rows) for rows in plan.batches(step)]
        assert len(sizes) <= plan.accumulation
        assert set(sizes[:-1]) <= {plan.batch_size}
        assert 1 <= sizes[-1] <= plan.batch_size
        last_of_epoch = (step + 1) % plan.steps_per_epoch == 0
        assert sum(sizes) == plan.texts_per_step or last_of_epoch


@given(PLANS, st.randoms())
def test_a_step_does_not_depend_on_what_was_asked_before(plan: Plan, chance: Any) -> None:
    expected = [plan.batches(step) for step in range(plan.steps)]
    steps = list(range(plan.steps))
    chance.shuffle(steps)
    for step in steps:
        for found, rows in zip(plan.batches(step), expected[step], strict=True):
            np.testing.assert_array_equal(found, rows)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        (seed, epoch): Plan(50, 4, 1, 3, seed).epoch_order(epoch).tolist()
        for seed in (0, 1)
        for epoch in range(3)
    }
    for one, other in itertools.combinations(orders.values(), 2):
        assert one != other


@given(
    st.integers(1, 300),
    st.floats(0, 0.9),
    st.sampled_from(["linear", "cosine", "constant"]),
)
def test_the_rate_rises_to_one_and_falls_to_nothing(steps: int, warmup: float, schedule: Any) -> None:
    rates = [rate_factor(step, steps, warmup, schedule) for step in range(steps + 1)]
    rising = int(np.ceil(steps * warmup))
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert all(a < b for a, b in itertools.pairwise(rates[: max(1, rising)]))
    assert all(a >= b for a, b in itertools.pairwise(rates[rising:]))
    assert max(rates) == 1.0
    if rising < steps:
        assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_fall_is_that_of_transformers(schedule: Any) -> None:
    """Only the warmup is counted otherwise: theirs starts with a step at rate 0, which trains nothing."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    make = get_linear_schedule_with_warmup if schedule == "linear" else get_cosine_schedule_with_warmup
    theirs = make(optimizer, num_warmup_steps=5, num_training_steps=50)
    for step in range(50):
        if step >= 5:
            assert rate_factor(step, 50, 0.1, schedule) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_fewer_passes_for_more_texts() -> None:
    passes = [default_epochs(n) for n in (100, 4_999, 5_000, 19_999, 20_000, 10**7)]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1] >= 1
