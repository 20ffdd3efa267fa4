"""DoRA in the engine: its layers are no grouped product, and a packed run is still the padded computation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from reference.families import FAMILIES, LENGTHS, differences, result_of, texts_of
from veneer.engine import Runner, pack
from veneer.lora import LoraConfig, adapter_parameters, attach, set_active
from veneer.models.heads import head_modules, native_pooling
from veneer.tasks.classification import Classification

LIMIT = 2e-6  # fp32 sums in another order, as in test_program.py


def adapted(kind: str) -> Any:
    """A model with two shaken adapters: "default" is DoRA and active, "plain" is an ordinary one."""
    model: Any = FAMILIES[kind].model()
    head = head_modules(model, native_pooling(model))
    for name, dora in (("plain", False), ("default", True)):
        config = LoraConfig(r=4, target_modules="all-linear", use_dora=dora, modules_to_save=head)
        attach(model, config, name=name, seed=0)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(5)
            for _, parameter in adapter_parameters(model, name):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
def test_a_packed_run_is_the_padded_one(kind: str, pooling: Any) -> None:
    model = adapted(kind)
    own, padded = Runner.of(model, mode="packed"), Runner.of(copy.deepcopy(model), mode="padded")
    task, batch = Classification(("a", "b", "c"), pooling), pack(texts_of(LENGTHS["mixed"]))

    def loss(runner: Runner) -> torch.Tensor:
        states = runner.hidden_states(batch, task.reads(batch.layout))
        return task.outputs(runner.model, states, batch.layout).square().mean()

    results = [result_of(r.model, lambda r=r: loss(r)) for r in (own, padded)]
    value, gradients = differences(*results)
    assert value <= LIMIT * max(1.0, abs(results[1].loss))
    assert gradients <= LIMIT
    with torch.inference_mode():
        assert float(loss(own)) == pytest.approx(float(loss(padded)), rel=LIMIT)


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
def test_the_program_waits_while_dora_is_active(kind: str) -> None:
    model = adapted(kind)
    assert Runner.of(model, mode="packed").program is None  # it can't be checked with DoRA active
    set_active(model, "plain")
    program = Runner.of(model, mode="packed").program
    assert program is not None
    assert program.ready()
    set_active(model, "default")
    assert not program.ready()
