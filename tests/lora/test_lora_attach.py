"""Attaching changes nothing but what it says, and detaching nothing at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import bert, gpt2, llama, logits, shaken_, snapshot
from torch import Tensor, nn
from torch.testing import assert_close

from veneer.errors import ConfigError, TargetError, VeneerError
from veneer.lora import (
    LoraConfig,
    LoraEmbedding,
    LoraLinear,
    active_adapters,
    adapter_names,
    adapter_parameters,
    attach,
    count_parameters,
    detach,
    disabled,
    merge,
    set_active,
)

FULL = LoraConfig(
    target_modules=["query", "dense", "word_embeddings"], modules_to_save=["classifier"], bias="all"
)
PLAIN = LoraConfig(target_modules=["query", "value"])
OTHER = LoraConfig(target_modules=["value", "key"], r=2, modules_to_save=["classifier"], bias="lora_only")


def attached(*adapters: tuple[str, LoraConfig], model: nn.Module | None = None) -> nn.Module:
    """A model with adapters that change its answers, the last one active."""
    model = bert() if model is None else model
    for seed, (name, config) in enumerate(adapters):
        attach(model, config, name=name, seed=seed)
        shaken_([parameter for _, parameter in adapter_parameters(model, name)], seed)
    return model


def identities(model: nn.Module) -> list[tuple[str, int, bool]]:
    """Every module and parameter object with its name, and whether it trains."""
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    return modules + [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]


@pytest.mark.parametrize("config", [PLAIN, FULL, OTHER], ids=["plain", "full", "other"])
def test_detach_restores_the_very_objects(config: LoraConfig) -> None:
    model = bert()
    next(model.parameters()).requires_grad_(False)  # flags of the user's own come back too
    before, weights, answer = identities(model), snapshot(model), logits(model)
    given = config.to_dict()
    attached(("a", config), model=model)
    assert not torch.allclose(logits(model), answer, atol=1e-3)
    logits(model).sum().backward()
    detach(model, "a")
    assert identities(model) == before
    assert model.state_dict().keys() == weights.keys()
    for key, tensor in model.state_dict().items():
        assert_close(tensor, weights[key], rtol=0, atol=0)
    assert config.to_dict() == given
    assert adapter_names(model) == ()
    assert "_veneer_adapters" not in vars(model)


@pytest.mark.parametrize("config", [PLAIN, FULL, OTHER], ids=["plain", "full", "other"])
def test_a_new_adapter_changes_no_answer(config: LoraConfig) -> None:
    model = bert()
    before = logits(model)
    attach(model, config, seed=0)
    assert_close(logits(model), before, rtol=0, atol=1e-6)  # B is zero; one addition of it


def test_training_changes_only_the_adapter() -> None:
    model = bert()
    weights = snapshot(model)
    attach(model, FULL, seed=0)
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5
    )
    for _ in range(2):
        optimiser.zero_grad()
        logits(model).square().mean().backward()
        optimiser.step()
    trained = dict(adapter_parameters(model))
    assert {id(p) for p in trained.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    detach(model)
    for key, tensor in model.state_dict().items():
        assert_close(tensor, weights[key], rtol=0, atol=0)


def test_freeze_can_be_left_out() -> None:
    model = bert()
    attach(model, PLAIN, freeze=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    logits(model).square().mean().backward()
    grad = model.get_parameter("bert.encoder.layer.0.attention.self.query.base_layer.weight").grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_disabled_is_the_base_and_only_inside() -> None:
    model = bert()
    before = logits(model)
    attached(("a", FULL), model=model)
    changed = logits(model)
    with disabled(model):
        assert_close(logits(model), before, rtol=0, atol=0)
        assert set(dict(model.named_parameters())) >= {"classifier.weight"}
    assert_close(logits(model), changed, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="inside"), disabled(model):
        raise RuntimeError("inside")
    assert_close(logits(model), changed, rtol=0, atol=0)


def test_several_adapters_and_switching() -> None:
    alone = {name: logits(attached((name, config))) for name, config in (("full", FULL), ("other", OTHER))}
    assert (alone["full"] - alone["other"]).abs().max() > 1e-2
    base = logits(bert())
    model = attached(("full", FULL))
    attach(model, OTHER, name="other", seed=0)
    shaken_([parameter for _, parameter in adapter_parameters(model, "other")], 0)
    assert adapter_names(model) == ("full", "other")
    for name in ("full", "other", "full"):
        set_active(model, name)
        assert active_adapters(model) == (name,)
        assert_close(logits(model), alone[name], rtol=0, atol=0)
        wanted = {id(parameter) for _, parameter in adapter_parameters(model, name)}
        assert {id(p) for p in model.parameters() if p.requires_grad} == wanted
    set_active(model, None)
    assert_close(logits(model), base, rtol=0, atol=0)
    assert count_parameters(model).trainable == 0
    detach(model, "full")
    set_active(model, "other")
    assert_close(logits(model), alone["other"], rtol=0, atol=0)


def test_two_adapters_together_add_their_changes() -> None:
    """For one linear layer the changes add up exactly."""
    layer = nn.Sequential(nn.Linear(6, 4))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    base = layer(x)
    changes = []
    for name in ("a", "b"):
        attach(layer, LoraConfig(target_modules=["0"], r=2), name=name, seed=1)
        shaken_([parameter for _, parameter in adapter_parameters(layer, name)], ord(name))
        changes.append(layer(x) - base)
    set_active(layer, ["a", "b"])
    assert_close(layer(x), base + changes[0] + changes[1], rtol=1e-5, atol=1e-5)  # fp32 sums in another order
    layer(x).sum().backward()
    assert all(p.grad is not None for name in "ab" for _, p in adapter_parameters(layer, name))


ERRORS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "duplicate": (lambda m: attach(m, PLAIN, name="a"), "'a' is attached already"),
    "dot": (lambda m: attach(m, PLAIN, name="a.b"), "can't be named 'a.b'"),
    "word": (lambda m: attach(m, PLAIN, name="keys"), "can't be named 'keys'"),
    "unknown": (lambda m: set_active(m, "aa"), "No adapter 'aa'.*'a'"),
    "unknown-detach": (lambda m: detach(m, "z"), "No adapter 'z'.*Attached are: 'a', 'b'"),
    "twice": (lambda m: set_active(m, ["a", "a"]), "names an adapter twice"),
    "biases": (lambda m: set_active(m, ["a", "b"]), "biases of their own"),
    "part": (lambda m: detach(m.bert, "a"), "Its part .* has one"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    action, says = ERRORS[case]
    model = attached(("a", FULL), ("b", OTHER))
    before = logits(model)
    with pytest.raises(ConfigError, match=says):
        action(model)
    assert_close(logits(model), before, rtol=0, atol=0)


def test_two_adapters_with_one_head_are_refused() -> None:
    head = LoraConfig(target_modules=["key"], modules_to_save=["classifier"])
    model = attached(("a", head), ("b", head))
    with pytest.raises(ConfigError, match="both replace the module classifier"):
        set_active(model, ["a", "b"])


def test_nothing_attached() -> None:
    for action in (detach, merge, lambda m: set_active(m, "a")):
        with pytest.raises(ConfigError, match=r"has no adapter attached.*Attach one first"):
            action(bert())
    assert adapter_names(bert()) == ()


def test_a_failed_attach_changes_nothing() -> None:
    model = attached(("a", OTHER))
    before, answer = identities(model), logits(model)
    for config in (
        LoraConfig(target_modules=["qery"]),
        LoraConfig(target_modules=["query", "classifier"], init_lora_weights="pissa"),  # 3 outputs, r 8
    ):
        with pytest.raises(VeneerError):
            attach(model, config, name="b")
    assert identities(model) == before
    assert_close(logits(model), answer, rtol=0, atol=0)


def test_pissa_of_too_high_a_rank() -> None:
    with pytest.raises(TargetError, match=r"classifier has a weight of \(3, 16\).*r=8 asks for more"):
        attach(bert(), LoraConfig(target_modules=["classifier"], init_lora_weights="pissa"))


def test_an_adapter_under_another_ones_saved_module() -> None:
    """One saves `classifier` whole, the other adapts it: each sees the base's."""
    saves = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    adapts = LoraConfig(target_modules=["classifier"])
    alone = {
        name: logits(attached((name, config))) for name, config in (("saves", saves), ("adapts", adapts))
    }
    for order in (("saves", "adapts"), ("adapts", "saves")):
        model, base = bert(), identities(bert())
        before = identities(model)
        for name in order:
            attach(model, saves if name == "saves" else adapts, name=name, seed=0)
            shaken_([parameter for _, parameter in adapter_parameters(model, name)], 0)
        for name in (*order, order[0]):
            set_active(model, name)
            assert_close(logits(model), alone[name], rtol=0, atol=0)
        for name in order:
            detach(model, name)
        assert identities(model) == before
        assert len(base) == len(before)


def test_a_copy_of_the_model_has_adapters_of_its_own() -> None:
    model = attached(("a", FULL))
    answer = logits(model)
    twin = copy.deepcopy(model)
    assert_close(logits(twin), answer, rtol=0, atol=0)
    shaken_([parameter for _, parameter in adapter_parameters(twin, "a")], 9)
    assert not torch.allclose(logits(twin), answer, atol=1e-3)
    assert_close(logits(model), answer, rtol=0, atol=0)
    detach(twin, "a")
    assert_close(logits(twin), logits(bert()), rtol=0, atol=0)
    assert adapter_names(model) == ("a",)


def test_models_read_weights_through_the_layers() -> None:
    model = attached(("a", LoraConfig(target_modules=["query", "word_embeddings"])))
    layer = model.bert.encoder.layer[0].attention.self.query
    assert isinstance(layer, LoraLinear)
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias
    assert (layer.in_features, layer.out_features) == (16, 16)
    words = model.get_input_embeddings()
    assert isinstance(words, LoraEmbedding)
    assert (words.num_embeddings, words.embedding_dim, words.padding_idx) == (40, 16, 0)
    assert words.weight is words.base_layer.weight


def test_hooks_of_the_base_layer_still_run() -> None:
    model, seen = bert(), []
    layer = model.bert.encoder.layer[1].attention.self.query
    layer.register_forward_hook(lambda *given: seen.append(given[2].shape))
    plain = attached(("a", PLAIN))
    attached(("a", PLAIN), model=model)
    assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)  # the hooked layer adds in another order
    assert seen == [(3, 6, 16)]


def test_dropout_acts_in_training_only() -> None:
    model = attached(("a", LoraConfig(target_modules=["query"], lora_dropout=0.5)))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    calm = logits(model)
    assert_close(logits(model), calm, rtol=0, atol=0)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(logits(model), logits(model), atol=1e-2)


def test_the_seed_decides_and_torchs_state_does_not() -> None:
    def start(seed: int | None, config: LoraConfig = PLAIN) -> dict[str, Tensor]:
        model = bert()
        attach(model, config, seed=seed)
        return {name: parameter.detach() for name, parameter in adapter_parameters(model)}

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = start(7)
    assert bool((torch.get_rng_state() == state).all())
    torch.manual_seed(1)
    second, other = start(7), start(8)
    more = start(7, LoraConfig(target_modules=["query", "value", "key", "dense"]))
    for name, tensor in first.items():
        assert_close(second[name], tensor, rtol=0, atol=0)
        assert_close(more[name], tensor, rtol=0, atol=0)  # whatever else is adapted
        assert name.endswith("lora_B") or not torch.equal(other[name], tensor)
    torch.manual_seed(3)
    drawn = start(None)
    torch.manual_seed(3)
    for name, tensor in start(None).items():
        assert_close(drawn[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("init", [True, "gaussian", False], ids=str)
def test_initial_values_have_pefts_distribution(init: bool | str) -> None:
    model = nn.Sequential(nn.Linear(400, 300))
    attach(model, LoraConfig(target_modules=["0"], r=50, init_lora_weights=init), seed=0)
    values = dict(adapter_parameters(model))
    A, B = values["0.lora_A"], values["0.lora_B"]
    deviation = 1 / 50 if init == "gaussian" else (1 / 400) ** 0.5 / 3**0.5  # uniform in ±b has b / sqrt(3)
    assert A.std().item() == pytest.approx(deviation, rel=0.02)  # 20,000 values: 0.5 % is one sigma
    assert abs(A.mean().item()) < 5 * deviation / 20_000**0.5
    if init is False:
        assert B.std().item() == pytest.approx((1 / 50) ** 0.5 / 3**0.5, rel=0.02)
    else:
        assert not B.any()


def test_randomised_pissa_is_reproducible_and_close_to_the_exact_one() -> None:
    def factors(init: str) -> Tensor:
        model = bert()
        attach(model, LoraConfig(target_modules=["dense"], init_lora_weights=init, r=2), seed=5)
        values = dict(adapter_parameters(model))
        name = "bert.encoder.layer.0.output.dense"
        assert_close(logits(model), logits(bert()), rtol=1e-5, atol=1e-5)
        return values[f"{name}.lora_B"] @ values[f"{name}.lora_A"]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = factors("pissa_niter_60")
    assert bool((torch.get_rng_state() == state).all())
    assert_close(factors("pissa_niter_60"), first, rtol=0, atol=0)
    assert_close(first, factors("pissa"), rtol=1e-3, atol=1e-3)  # 60 subspace iterations


@pytest.mark.parametrize("family", [gpt2, bert, llama])
def test_a_bf16_base_keeps_fp32_adapters(family: Callable[[], nn.Module]) -> None:
    exact = family()
    config = LoraConfig(
        target_modules="all-linear",
        r=4,
        bias="lora_only",
        modules_to_save=["score"] if family is gpt2 else None,
    )
    attach(exact, config, seed=0)
    rough = family().to(torch.bfloat16)
    attach(rough, config, seed=0)
    for model in (exact, rough):
        shaken_([parameter for _, parameter in adapter_parameters(model)])
    assert {parameter.dtype for _, parameter in adapter_parameters(rough)} == {torch.float32}
    wanted, got = logits(exact), logits(rough).float()
    assert (got - wanted).norm() / wanted.norm() < 0.1  # bf16 through three blocks
    got.square().mean().backward()
    assert all(parameter.grad is not None for _, parameter in adapter_parameters(rough))
    assert {p.grad.dtype for _, p in adapter_parameters(rough) if p.grad is not None} == {torch.float32}


def test_a_whole_embedding_trains_in_fp32_inside_a_bf16_base() -> None:
    model = bert().to(torch.bfloat16)
    attach(model, LoraConfig(target_modules=["query"], modules_to_save=["word_embeddings", "classifier"]))
    answer = logits(model)
    assert answer.dtype == torch.bfloat16
    answer.float().square().mean().backward()
    trained = dict(adapter_parameters(model))
    assert trained["bert.embeddings.word_embeddings.weight"].dtype == torch.float32
    assert trained["bert.embeddings.word_embeddings.weight"].grad is not None
    assert model.classifier(torch.ones(1, 16)).dtype == torch.float32  # fp32 in, fp32 out
