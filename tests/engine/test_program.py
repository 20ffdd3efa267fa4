"""The engine's own form of a backbone against the padded computation: every adapter, every read position.

The padded computation is transformers' own (`test_engine_families.py`). Tolerance 2e-6 as there.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from reference.families import FAMILIES, LENGTHS, PAD, POSITIONS, differences, family_of, result_of, texts_of
from veneer.engine import Runner, pack
from veneer.lora import LoraConfig, adapter_parameters, attach, detach, disabled, merge, set_active, unmerge
from veneer.models.heads import head_modules, native_pooling
from veneer.tasks.classification import Classification

LIMIT = 2e-6
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    **{name: FAMILIES[name] for name in ("GPT-2", "BERT", "RoBERTa")},
    "ELECTRA": family_of("Electra", _SIZES | {"embedding_size": 16}, "", pad_token_id=PAD),
}
POOLINGS = ("first", "last", "mean")


def adapted(kind: str, *, seed: int = 0, **options: Any) -> Any:
    """A model with a shaken adapter."""
    model = KINDS[kind].model()
    head = head_modules(model, native_pooling(model))
    config: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "modules_to_save": head,
    }
    attach(model, LoraConfig(**(config | options)), seed=seed)
    shake_(model)
    return model


def shake_(model: Any, name: str = "default") -> None:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for _, parameter in adapter_parameters(model, name):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def loss(runner: Runner, lengths: tuple[int, ...], pooling: Any) -> Tensor:
    """A loss that each pooled state enters with a factor of its own."""
    task = Classification(("a", "b", "c"), pooling)
    batch = pack(texts_of(lengths))
    states = task.outputs(runner.model, runner.hidden_states(batch, task.reads(batch.layout)), batch.layout)
    factors = torch.linspace(-1.0, 1.0, states.numel()).view_as(states)[list(batch.order)]
    return (states * factors).sum() + 0.1 * states.square().mean()


def runners(model: Any) -> tuple[Runner, Runner]:
    own, padded = Runner.of(model, mode="packed"), Runner.of(copy.deepcopy(model), mode="padded")
    assert own.program is not None
    return own, padded


def check(
    model: Any, lengths: tuple[int, ...] = LENGTHS["mixed"], pooling: str = "mean", *, recompute: bool = False
) -> None:
    """Loss and gradients by the program and padded, and the loss under inference."""
    own, padded = runners(model)
    own = own.recomputing() if recompute else own
    results = [result_of(r.model, lambda r=r: loss(r, lengths, pooling)) for r in (own, padded)]
    value, gradients = differences(*results)
    assert value <= LIMIT * max(1.0, abs(results[1].loss))
    assert gradients <= LIMIT
    with torch.inference_mode():  # evaluation takes ways of its own
        values = [float(loss(r, lengths, pooling)) for r in (own, padded)]
    assert abs(values[0] - values[1]) <= LIMIT * max(1.0, abs(values[1]))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_and_read_position(kind: str, pooling: str, lengths: str) -> None:
    model = adapted(kind)
    assert Runner.of(model).program.ready()  # type: ignore[union-attr]
    check(model, LENGTHS[lengths], pooling)


SOME: dict[str, dict[str, Any]] = {
    "value alone": {"BERT": ("value",), "GPT-2": ("attn.c_proj",)},
    "query and key": {"BERT": ("query", "key"), "GPT-2": ("c_attn",)},
    "feed-forward": {"BERT": ("intermediate.dense", "output.dense"), "GPT-2": ("c_fc", "mlp.c_proj")},
}


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("some", SOME)
def test_adapters_on_some_layers(some: str, pooling: str, kind: str) -> None:
    check(adapted(kind, target_modules=SOME[some][kind]), pooling=pooling)


OPTIONS: dict[str, dict[str, Any]] = {
    "biases of adapted layers": {"bias": "lora_only"},
    "every bias": {"bias": "all"},
    "one block": {"target_modules": ("dense", "query", "c_attn", "c_fc"), "layers_to_transform": (1,)},
    "other ranks": {"rank_pattern": {"query": 2, "c_fc": 3}, "alpha_pattern": {"key": 3}},
    "rank-stabilised": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_adapter(option: str, kind: str) -> None:
    options = dict(OPTIONS[option])
    if option == "one block":
        names = {"BERT": ("intermediate.dense", "query"), "GPT-2": ("c_attn", "c_fc")}
        options["target_modules"] = names[kind]
    if option == "other ranks":
        options["rank_pattern"] = {"query": 2} if kind == "BERT" else {"c_fc": 3}
        options["alpha_pattern"] = {"key": 3} if kind == "BERT" else {"c_attn": 3}
    check(adapted(kind, **options))


@pytest.mark.parametrize("slices", [("q",), ("q", "v"), ("q", "k", "v")])
def test_slices_of_a_fused_layer(slices: tuple[str, ...]) -> None:
    for pooling in POOLINGS:
        check(adapted("GPT-2", target_modules=("c_attn",), qkv_slices=slices), pooling=pooling)


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_what_changes_between_two_calls_counts_at_once(kind: str, bias: str) -> None:
    """Weights are laid side by side once; training, switching, merging and detaching are seen all the same."""
    model = adapted(kind, bias=bias)
    own = Runner.of(model, mode="packed")
    padded = Runner(model, "padded", "")
    seen: list[float] = []

    def same() -> None:
        with torch.inference_mode():
            found, expected = (float(loss(r, LENGTHS["mixed"], "mean")) for r in (own, padded))
        assert abs(found - expected) <= 2 * LIMIT * max(1.0, abs(expected))
        seen.append(expected)

    same()
    shake_(model)  # as a step of the optimiser does
    same()
    with disabled(model):
        same()
    attach(model, LoraConfig(r=2, target_modules="all-linear"), name="second", seed=3)
    shake_(model, "second")
    same()
    set_active(model, "default")
    same()
    merge(model)
    same()
    unmerge(model)
    same()
    detach(model, "second")
    same()
    detach(model)
    same()
    assert abs(seen[0] - seen[1]) > 1e-3
    assert abs(seen[1] - seen[2]) > 1e-3
    assert abs(seen[1] - seen[3]) > 1e-3
    assert abs(seen[4] - seen[5]) < 1e-4  # merged: the same function
    assert abs(seen[1] - seen[6]) < 1e-6
    assert abs(seen[2] - seen[8]) < 1e-6


def test_dropout_of_the_adapter_and_a_trained_base_go_another_way() -> None:
    model = adapted("BERT", lora_dropout=0.5)
    program = Runner.of(model).program
    assert program is not None
    assert program.ready()
    model.train()
    assert not program.ready()
    plain = Runner.of(KINDS["BERT"].model()).program
    assert plain is not None
    assert not plain.ready()
    with torch.no_grad():
        assert plain.ready()


def test_long_texts_are_within_the_positions() -> None:
    assert max(max(lengths) for lengths in LENGTHS.values()) <= POSITIONS
