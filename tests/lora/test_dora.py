"""DoRA beyond the parity with PEFT in test_lora_peft_parity: the formula, dropout, several adapters, what is kept."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from small_models import bert, gpt2, logits, shaken_
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from veneer.errors import AdapterError, ConfigError
from veneer.lora import (
    LoraConfig,
    LoraEmbedding,
    LoraLinear,
    adapter_parameters,
    adapter_state_dict,
    attach,
    detach,
    disabled,
    load_adapter_state_dict,
    lora_config_from_peft,
    merge,
    set_active,
    unmerge,
)
from veneer.lora.dora import Dora

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # fp32 values of size one, summed in another order


def one(layer: nn.Module, *, seed: int = 0, **given: object) -> nn.Module:
    """A model of one layer with a DoRA adapter whose every tensor is drawn."""
    model = nn.Sequential(layer)
    attach(model, LoraConfig(target_modules=["0"], use_dora=True, r=2, **given), seed=seed)  # type: ignore[arg-type]
    shaken_([parameter for _, parameter in adapter_parameters(model)], seed)
    return model


def dense(model: nn.Module, name: str = "default") -> Tensor:
    """W' (m, n) in float64, by equation 5 of the paper."""
    layer = model[0]
    A, B, magnitude = (p.detach().double() for p in adapter_state_of(layer, name))
    W = layer.base_layer.weight.detach().double()
    W = W if isinstance(layer.base_layer, nn.Linear) else W.t()
    V = W + layer.pair(name).settings.scaling * B @ A
    return magnitude[:, None] * V / V.norm(dim=1, keepdim=True)


def adapter_state_of(layer: LoraLinear | LoraEmbedding, name: str) -> tuple[Tensor, Tensor, Tensor]:
    pair = layer.pair(name)
    assert isinstance(pair, Dora)
    return pair.lora_A, pair.lora_B, pair.lora_magnitude_vector


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(6, 9),
    "Linear-no-bias": lambda: nn.Linear(6, 9, bias=False),
    "Conv1D": lambda: Conv1D(9, 6),
    "Embedding": lambda: nn.Embedding(6, 9),
}


def made(kind: str) -> nn.Module:
    torch.manual_seed(4)
    layer = LAYERS[kind]()
    nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    return layer


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("grad", [True, False])
def test_it_is_the_papers_formula(kind: str, grad: bool) -> None:
    model = one(made(kind))
    x = torch.randn(5, 6)
    bias = getattr(model[0].base_layer, "bias", None)
    W = dense(model).float()
    if kind == "Embedding":
        ids = torch.tensor([[0, 3], [5, 3]])
        x, wanted = ids, W.t()[ids]
    else:
        wanted = x @ W.t() + (0.0 if bias is None else bias.detach())
    with torch.set_grad_enabled(grad):
        assert_close(model(x).detach(), wanted, **CLOSE)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_norm_gets_no_gradient(kind: str) -> None:
    """Section 4.3: the gradient is that of `g ⊙ (W + s B A)` with ‖V‖ as a constant."""
    model = one(made(kind))
    x = torch.tensor([0, 3, 3, 5]) if kind == "Embedding" else torch.randn(4, 6)
    model(x).square().sum().backward()
    A, B, magnitude = (p.detach().clone().requires_grad_() for p in adapter_state_of(model[0], "default"))
    W = model[0].oriented.detach()
    V = W + model[0].pair("default").settings.scaling * B @ A
    W_new = (magnitude / V.detach().norm(dim=1))[:, None] * V
    bias = getattr(model[0].base_layer, "bias", None)
    y = W_new.t()[x] if kind == "Embedding" else x @ W_new.t() + (0.0 if bias is None else bias.detach())
    y.square().sum().backward()
    for got, wanted in zip(adapter_state_of(model[0], "default"), (A, B, magnitude), strict=True):
        assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-4)  # gradients of size ten


@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_the_start_is_the_base_or_its_direction(init: bool | str) -> None:
    model = bert()
    answer = logits(model)
    targets = ["query", "dense", "word_embeddings"]
    report = attach(model, LoraConfig(target_modules=targets, use_dora=True, init_lora_weights=init), seed=0)
    trained = sum(p.numel() for _, p in adapter_parameters(model))
    assert report.resolution.trainable == report.parameters.trainable == trained
    if init is not False:  # B is zero
        assert_close(logits(model), answer, **CLOSE)
    else:
        changed = logits(model)
        assert not torch.allclose(changed, answer, atol=1e-3)
        plain = bert()
        attach(plain, LoraConfig(target_modules=targets, init_lora_weights=False), seed=0)
        assert_close(changed, logits(plain), rtol=1e-4, atol=1e-4)  # g is one: an ordinary LoRA


@pytest.mark.parametrize("family", [bert, gpt2])
def test_dropout_is_pefts_with_the_same_seed(family: Callable[[], nn.Module], tmp_path: Path) -> None:
    targets = ["query", "value"] if family is bert else ["c_attn", "c_proj"]
    given = {"target_modules": targets, "lora_dropout": 0.3, "use_dora": True}
    theirs = peft.get_peft_model(family(), peft.LoraConfig(**copy.deepcopy(given))).train()
    shaken_([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(str(tmp_path))
    ours = family()
    attach(ours, lora_config_from_peft(json.loads((tmp_path / "adapter_config.json").read_text())))
    load_adapter_state_dict(ours, load_file(tmp_path / "adapter_model.safetensors"))
    ours.train()
    for module in (*theirs.modules(), *ours.modules()):  # no dropout but LoRA's
        if isinstance(module, nn.Dropout) and module.p != 0.3:
            module.p = 0.0
    undropped = logits(ours.eval())
    ours.train()
    torch.manual_seed(8)
    wanted = logits(theirs)
    torch.manual_seed(8)
    got = logits(ours)
    assert not torch.allclose(got, undropped, atol=1e-3)
    assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("kind", LAYERS)
def test_several_adapters_are_added_up(kind: str) -> None:
    """W + (W'_a - W) + (W'_b - W) + the plain adapter's change; the order does not matter, merged or not."""
    model = one(made(kind))
    attach(model, LoraConfig(target_modules=["0"], use_dora=True, r=3), name="b", seed=1)
    attach(model, LoraConfig(target_modules=["0"], r=2), name="plain", seed=2)
    for name in ("b", "plain"):
        shaken_([p for _, p in adapter_parameters(model, name)], 9)
    W = model[0].oriented.detach().double()
    factors = model[0].pair("plain").factors()
    low_rank = (factors[1] @ factors[0]).detach().double() * model[0].pair("plain").settings.scaling
    total = (dense(model) - W) + (dense(model, "b") - W) + low_rank + W
    x = torch.tensor([1, 4]) if kind == "Embedding" else torch.randn(3, 6)
    bias = getattr(model[0].base_layer, "bias", None)
    wanted = total.float().t()[x] if kind == "Embedding" else x @ total.float().t()
    wanted = wanted + (0.0 if bias is None else bias.detach())
    for order in (["default", "b", "plain"], ["plain", "b", "default"]):
        set_active(model, order)
        assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    merge(model)
    assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    unmerge(model)
    set_active(model, "b")
    answer = model(x)
    with disabled(model):
        assert not torch.allclose(model(x), answer, atol=1e-3)
    assert_close(model(x), answer, rtol=0, atol=0)


def test_detaching_leaves_the_base_as_it_was() -> None:
    model = bert()
    answer, layer = logits(model), model.bert.encoder.layer[0].attention.self.query
    attach(model, LoraConfig(target_modules=["query"], use_dora=True), seed=0)
    shaken_([p for _, p in adapter_parameters(model)])
    assert not torch.allclose(logits(model), answer, atol=1e-3)
    detach(model)
    assert model.bert.encoder.layer[0].attention.self.query is layer
    assert_close(logits(model), answer, rtol=0, atol=0)


def test_a_hook_on_the_base_still_runs() -> None:
    model = one(made("Linear"))
    x = torch.randn(3, 6)
    answer = model(x)
    calls = []
    model[0].base_layer.register_forward_hook(lambda *_: calls.append(1))
    assert_close(model(x), answer, **CLOSE)
    assert calls == [1]


def test_a_magnitude_near_the_norm_is_not_lost_in_bf16() -> None:
    """g = 1.01 would be 1.0078 in bf16, for every output alike; in fp32 the outputs are right on average."""
    layer = nn.Linear(64, 512, bias=False).to(torch.bfloat16)
    model = nn.Sequential(layer)
    attach(model, LoraConfig(target_modules=["0"], use_dora=True), seed=0)
    A, B, magnitude = adapter_state_of(model[0], "default")
    assert {A.dtype, B.dtype, magnitude.dtype} == {torch.float32}
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    before = model(x)
    with torch.no_grad():
        magnitude.mul_(1.01)
    after = model(x)
    assert after.dtype is torch.bfloat16
    drift = (after.double().norm() / before.double().norm()).item()
    assert drift == pytest.approx(1.01, abs=1e-3)


def test_an_output_without_weights_stays_finite() -> None:
    """Where V is zero PEFT divides 0 by 0."""
    layer = made("Linear")
    with torch.no_grad():
        layer.weight[2] = 0.0  # type: ignore[index]
    model = nn.Sequential(layer)
    attach(model, LoraConfig(target_modules=["0"], use_dora=True), seed=0)
    y = model(torch.randn(3, 6))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in adapter_parameters(model))


def test_the_norm_is_kept_only_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = one(made("Linear")).eval()
    pair = model[0].pair("default")
    computed: list[int] = []
    real = Dora._turned
    monkeypatch.setattr(Dora, "_turned", lambda self, weight: computed.append(1) or real(self, weight))
    x = torch.randn(3, 6)

    def answers(times: int) -> int:
        """How often the norm is computed in so many forwards, each of which is right."""
        before = len(computed)
        with torch.no_grad():
            for _ in range(times):
                wanted = x @ dense(model).float().t() + model[0].bias
                assert_close(model(x), wanted, **CLOSE)
        return len(computed) - before

    assert answers(3) == 1
    assert answers(1) == 0
    for make in (torch.optim.SGD, torch.optim.AdamW):
        optimiser = make([p for _, p in adapter_parameters(model)], lr=0.1)
        model(x).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        assert answers(2) == 1
    fused = torch.optim.AdamW([p for _, p in adapter_parameters(model)], lr=0.1, fused=True)
    model(x).square().sum().backward()
    fused.step()
    assert answers(2) == 1
    state = adapter_state_dict(model)
    load_adapter_state_dict(model, {key: tensor * 1.1 for key, tensor in state.items()})
    assert answers(2) == 1
    with torch.no_grad():
        model[0].base_layer.weight.mul_(0.5)
    assert answers(2) == 1
    model[0].base_layer.weight.data = model[0].base_layer.weight.data * 3
    assert answers(2) == 1
    pair.train()
    pair.eval()
    assert answers(2) == 1
    other = copy.deepcopy(model)
    with torch.no_grad():
        assert_close(other(x), model(x), rtol=0, atol=0)
    with torch.inference_mode():
        assert_close(model(x), other(x), rtol=0, atol=0)
    model(x).square().sum().backward()  # what inference mode kept is not in the way of training


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"init_lora_weights": "pissa"}, r"use_dora and init_lora_weights='pissa' don't go together"),
        ({"qkv_slices": ["q"]}, r"use_dora and qkv_slices don't go together"),
    ],
)
def test_what_does_not_go_with_it(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LoraConfig(use_dora=True, **given)  # type: ignore[arg-type]
    written = {
        "peft_type": "LORA",
        "target_modules": ["c_attn"],
        "use_dora": True,
        "init_lora_weights": "pissa",
    }
    with pytest.raises(AdapterError, match="don't go together"):
        lora_config_from_peft(written)


def test_a_missing_magnitude_is_a_fault() -> None:
    model = bert()
    attach(model, LoraConfig(target_modules=["query"], use_dora=True), seed=0)
    state = adapter_state_dict(model)
    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_magnitude_vector"
    broken = {k: v for k, v in state.items() if k != key}
    with pytest.raises(AdapterError, match=f"missing: {key} \\(16,\\)"):
        load_adapter_state_dict(model, broken)
    with pytest.raises(AdapterError, match=r"lora_magnitude_vector: shape \(3,\), expected \(16,\)"):
        load_adapter_state_dict(model, state | {key: torch.ones(3)})
    plain = bert()
    attach(plain, LoraConfig(target_modules=["query"]), seed=0)
    with pytest.raises(AdapterError, match=r"unexpected: .*lora_magnitude_vector"):
        load_adapter_state_dict(plain, state)


def test_autocast_gives_the_base_dtype_and_gradients() -> None:
    model = one(made("Linear"))
    x = torch.randn(3, 6)
    exact = model(x)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype is torch.bfloat16
    assert_close(y.float(), exact, rtol=0.05, atol=0.1)  # bf16 products of size one
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for _, p in adapter_parameters(model))
