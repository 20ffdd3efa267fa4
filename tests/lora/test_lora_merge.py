"""Merging: the same function in the weights, and back again bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import bert, gpt2, llama, logits, shaken_, snapshot
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from veneer.errors import BaseError, ConfigError
from veneer.lora import (
    LoraConfig,
    adapter_parameters,
    attach,
    detach,
    disabled,
    merge,
    merge_and_unload,
    merged_adapters,
    set_active,
    unmerge,
)

CONFIGS = {
    "linear": (bert, LoraConfig(target_modules=["query", "dense"], use_rslora=True)),
    "conv1d": (gpt2, LoraConfig(target_modules=["c_attn", "c_proj"])),
    "embedding": (bert, LoraConfig(target_modules=["query", "word_embeddings"])),
    "slices": (gpt2, LoraConfig(target_modules=["c_attn"], qkv_slices=["q", "v"])),
    "pissa": (bert, LoraConfig(target_modules=["query"], init_lora_weights="pissa", r=2)),
    "dora": (bert, LoraConfig(target_modules=["query", "dense"], use_dora=True, use_rslora=True)),
    "dora-conv1d": (gpt2, LoraConfig(target_modules=["c_attn", "c_proj"], use_dora=True)),
    "dora-embedding": (bert, LoraConfig(target_modules=["query", "word_embeddings"], use_dora=True)),
    "biases-and-head": (
        bert,
        LoraConfig(target_modules=["query"], bias="all", modules_to_save=["classifier"]),
    ),
}


def adapted(case: str) -> nn.Module:
    make, config = CONFIGS[case]
    model = make()
    attach(model, config, seed=0)
    shaken_([parameter for _, parameter in adapter_parameters(model)])
    return model


@pytest.mark.parametrize("case", CONFIGS)
def test_adapted_merged_and_unmerged_are_one_function(case: str) -> None:
    model = adapted(case)
    weights = {n: (id(p), p.detach().clone()) for n, p in model.named_parameters()}
    answer = logits(model)
    merge(model)
    assert merged_adapters(model) == ("default",)
    assert_close(logits(model), answer, rtol=1e-4, atol=1e-4)  # PEFT's own bound for merging in fp32
    unmerge(model)
    for name, parameter in model.named_parameters():
        assert id(parameter) == weights[name][0], name
        assert_close(parameter.detach(), weights[name][1], rtol=0, atol=0)
    assert_close(logits(model), answer, rtol=0, atol=0)


@pytest.mark.parametrize("case", CONFIGS)
def test_merge_and_unload_leaves_a_plain_model(case: str) -> None:
    make, _ = CONFIGS[case]
    model = adapted(case)
    answer = logits(model)
    merge_and_unload(model)
    plain = make()
    assert [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in plain.named_modules()
    ]
    plain.load_state_dict(model.state_dict())
    assert_close(logits(plain), answer, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_merge_and_unload_of_a_bf16_base() -> None:
    model = bert().to(torch.bfloat16)
    attach(model, CONFIGS["biases-and-head"][1], seed=0)
    shaken_([parameter for _, parameter in adapter_parameters(model)])
    answer = logits(model).float()
    merge_and_unload(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.classifier._forward_hooks
    assert (logits(model).float() - answer).norm() / answer.norm() < 0.05  # weights rounded to bf16


def test_several_adapters_merge_into_their_sum() -> None:
    model = gpt2()
    for name, targets in (("a", ["c_attn"]), ("b", ["c_attn", "c_proj"])):
        attach(model, LoraConfig(target_modules=targets), name=name, seed=ord(name))
        shaken_([parameter for _, parameter in adapter_parameters(model, name)], ord(name))
    set_active(model, ["a", "b"])
    answer = logits(model)
    set_active(model, "a")
    merge(model, ["a", "b"])
    assert merged_adapters(model) == ("a", "b")
    assert_close(logits(model), answer, rtol=1e-4, atol=1e-4)
    unmerge(model)
    assert_close(logits(model), answer, rtol=0, atol=0)


def test_what_a_merged_model_refuses() -> None:
    model = adapted("linear")
    config = CONFIGS["linear"][1]
    with pytest.raises(ConfigError, match="Nothing is merged"):
        unmerge(model)
    merge(model)
    answer = logits(model)
    with pytest.raises(ConfigError, match="'default' is merged already"):
        merge(model)
    for action in (
        lambda: attach(model, config, name="more"),
        lambda: detach(model),
        lambda: set_active(model, None),
        lambda: disabled(model).__enter__(),
    ):
        with pytest.raises(ConfigError, match=r"'default' merged into its weights.*unmerge\(model\) first"):
            action()
    assert_close(logits(model), answer, rtol=0, atol=0)


def test_nothing_active_to_merge() -> None:
    model = adapted("linear")
    set_active(model, None)
    with pytest.raises(ConfigError, match="No adapter is active"):
        merge(model)
    merge(model, "default")
    assert merged_adapters(model) == ("default",)


def test_a_result_that_is_not_finite_changes_nothing() -> None:
    model = adapted("linear")
    weights = snapshot(model)
    broken = dict(adapter_parameters(model))["bert.encoder.layer.1.output.dense.lora_B"]
    with torch.no_grad():
        broken[0, 0] = float("inf")
    with pytest.raises(
        BaseError, match=r"bert.encoder.layer.1.output.dense would make 24 of 384 weights infinite"
    ):
        merge(model)
    assert merged_adapters(model) == ()
    for key, tensor in model.state_dict().items():
        if "lora_" not in key:
            assert_close(tensor, weights[key], rtol=0, atol=0)


def test_a_tied_weight_is_refused_or_untied() -> None:
    model = llama()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    attach(model, LoraConfig(target_modules=["q_proj", "embed_tokens"]), seed=0)
    shaken_([parameter for _, parameter in adapter_parameters(model)])
    answer = logits(model)
    head = model.lm_head.weight
    with pytest.raises(BaseError, match=r"model.embed_tokens shares its weight with lm_head.*untie=True"):
        merge(model)
    merge(model, untie=True)
    assert_close(logits(model), answer, rtol=1e-4, atol=1e-4)
    assert model.lm_head.weight is head
    unmerge(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_bf16_base_is_merged_in_fp32() -> None:
    """Many small changes: each is below half a step of bf16, their sum is not. fp32 keeps the sum."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    for i in range(4):
        attach(model, LoraConfig(target_modules=["0"], r=1, lora_alpha=1), name=f"a{i}")
        for _, parameter in adapter_parameters(model, f"a{i}"):
            parameter.data.fill_(0.002**0.5)
    merge(model, [f"a{i}" for i in range(4)])
    assert_close(model[0].weight.detach(), torch.full((4, 4), 1.008).to(torch.bfloat16), rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    r=st.integers(1, 4),
    alpha=st.floats(0.1, 50),
    conv1d=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_merge_then_unmerge_is_nothing(
    n: int, m: int, r: int, alpha: float, conv1d: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(Conv1D(m, n) if conv1d else nn.Linear(n, m)).to(dtype)
    weight = model[0].weight.detach().clone()
    attach(model, LoraConfig(target_modules=["0"], r=r, lora_alpha=alpha), seed=seed)
    shaken_([parameter for _, parameter in adapter_parameters(model)], seed)
    x = torch.randn(3, n, dtype=dtype)
    answer = model(x).detach().float()
    merge(model)
    A, B = (parameter.detach().double() for _, parameter in adapter_parameters(model))
    change = B @ A * alpha / r
    wanted = (weight.double() + (change.t() if conv1d else change)).to(dtype)
    step = torch.finfo(dtype).eps
    assert_close(model[0].weight.detach(), wanted, rtol=2 * step, atol=1e-5)  # one rounding of the exact sum
    assert_close(model(x).float(), answer, rtol=40 * step, atol=40 * step * (float(answer.abs().max()) + 1))
    unmerge(model)
    detach(model)
    assert_close(model[0].weight.detach(), weight, rtol=0, atol=0)
