"""Weights in int8: rounded to the nearest, and products and gradients of exactly the rounded weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from reference.families import FAMILIES
from veneer.errors import BaseError, ConfigError
from veneer.lora import (
    Int8Linear,
    Int8Weight,
    LoraConfig,
    attach,
    detach,
    held_in_int8,
    int8,
    merge,
    quantizable,
    quantize_,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_is_off_by_more_than_half_a_step(dtype: torch.dtype) -> None:
    W = (drawn(37, 50) * torch.logspace(-6, 3, 37)[:, None]).to(dtype)
    W[5] = 0.0
    held = Int8Weight.of(W)
    off = (W.double() - held.values.double() * held.scale.double()[:, None]).abs()
    assert bool(
        (off <= held.scale.double()[:, None] * (0.5 + 1e-5)).all()
    )  # the division is rounded to 2^-24
    assert_close(
        held.values.abs().amax(1), torch.full((37,), 127, dtype=torch.int8).index_fill_(0, torch.tensor(5), 0)
    )
    assert held.values.nbytes + held.scale.nbytes == 37 * 50 + 37 * 4


def test_a_weight_that_is_no_number_is_refused() -> None:
    W = drawn(4, 3)
    W[2, 1] = float("nan")
    with pytest.raises(BaseError, match="precision int8: a weight is infinite or not a number"):
        Int8Weight.of(W)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("piece", [64, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_those_of_the_rounded_weight(
    rows: int, piece: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64; bf16 rounds the input's 2^-9 nowhere but in outputs, scale and sum."""
    monkeypatch.setattr(int8, "_PIECE", piece)
    held = Int8Weight.of(drawn(33, 21))
    exact = held.values.double() * held.scale.double()[:, None]
    x, bias, residual = (
        drawn(rows, 21, seed=1).to(dtype),
        drawn(33, seed=2).to(dtype),
        drawn(rows, 33, seed=3).to(dtype),
    )
    grad, beside = drawn(rows, 33, seed=4).to(dtype), drawn(rows, 21, seed=5).to(dtype)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.03, "atol": 0.15}
    y = held.product(x, bias, residual)
    assert_close(y.double(), x.double() @ exact.t() + bias.double() + residual.double(), **near)
    assert_close(held.input_gradient(grad, beside).double(), grad.double() @ exact + beside.double(), **near)
    assert y.dtype == dtype


@pytest.mark.parametrize("order", ["attach, quantise", "quantise, attach"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BERT"])
def test_lora_beside_int8_is_lora_beside_the_rounded_weight(name: str, order: str) -> None:
    """The oracle is the same adapter on a base in fp32 whose weights were replaced by the rounded ones."""
    model = FAMILIES[name].model()
    oracle = copy.deepcopy(model)
    config = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
    names = quantizable(model)
    assert len(names) >= 8
    with torch.no_grad():
        for each in names:
            layer = oracle.get_submodule(each)
            transposed = type(layer).__name__ == "Conv1D"
            W = layer.weight
            rounded = Int8Weight.of(W.t() if transposed else W).dense()
            W.copy_(rounded.t() if transposed else rounded)
    attach(oracle, config, seed=0)
    if order.startswith("attach"):
        attach(model, config, seed=0)
        assert quantize_(model) == len(names)
    else:
        assert quantize_(model) == len(names)
        attach(model, config, seed=0)
    assert held_in_int8(model) == names
    ids = torch.arange(12).view(2, 6) + 5
    found, expected = (m.eval()(input_ids=ids)[0] for m in (model, oracle))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for output in (found, expected):
        output.square().sum().backward()
    pairs = [
        (p.grad, q.grad)
        for (n, p), (_, q) in zip(trained(model), trained(oracle), strict=True)
        if p.grad is not None and "lora" in n
    ]
    assert len(pairs) >= 16
    for ours, theirs in pairs:
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max().clamp(min=1.0)))
    with pytest.raises(BaseError, match="held in int8, and an adapter can't be merged"):
        merge(model)
    detach(model)
    assert len(held_in_int8(model)) == len(names)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def test_a_quarter_of_the_memory() -> None:
    model = FAMILIES["GPT-2"].model()
    names = quantizable(model)
    before = sum(model.get_submodule(name).weight.nbytes for name in names)
    quantize_(model)
    layers = [model.get_submodule(name) for name in names]
    assert all(isinstance(layer, Int8Linear) for layer in layers)
    assert sum(layer.values.nbytes for layer in layers) * 4 == before  # type: ignore[union-attr, operator]
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_dora_is_refused_before_and_after() -> None:
    config = LoraConfig(r=2, target_modules="all-linear", use_dora=True)
    before, after = FAMILIES["BERT"].model(), FAMILIES["BERT"].model()
    attach(before, config, seed=0)
    with pytest.raises(ConfigError, match=r"precision int8: .* has a DoRA adapter"):
        quantize_(before)
    assert held_in_int8(before) == []
    quantize_(after)
    with pytest.raises(ConfigError, match=r"use_dora: .* is held in int8"):
        attach(after, config, seed=0)
