"""The activations against PyTorch's own kernels, for every value that bf16 has."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.activations import ACT2FN

from veneer.engine.activations import activation_of
from veneer.engine.frozen import has_blocks
from veneer.engine.linears import LinearGroup

NAMES = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]


def every_bf16() -> torch.Tensor:
    """All finite bf16 numbers up to 1e4 in size, (N, 64), some of them twice."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    patterns = patterns[patterns.float().abs() < 1e4]
    return torch.cat([patterns, patterns[: -len(patterns) % 64]]).view(-1, 64)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_value_and_slope_are_the_rounded_fp32_ones(name: str) -> None:
    activation = activation_of(name)
    assert activation is not None
    x = every_bf16().requires_grad_(True)
    y = activation(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    wide = x.detach().float().requires_grad_(True)
    expected = ACT2FN[name](wide)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)
    # one rounding to bf16: a relative error of 2^-8; slopes near zero come from a difference of nearly equal numbers
    assert_close(y.float(), expected, rtol=2**-7, atol=1e-6)
    assert_close(slope.float(), expected_slope, rtol=2**-7, atol=2e-3)


def test_a_value_without_a_graph_is_the_same() -> None:
    activation = activation_of("gelu_new")
    assert activation is not None
    x = every_bf16()
    assert torch.equal(activation.forward(x), activation(x.clone().requires_grad_(True)).detach())
    odd = x.flatten()[:63]  # no whole number of rows: PyTorch's own kernel
    assert_close(activation.forward(odd), activation.forward(x).flatten()[:63], rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_behind_its_product(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    activation = activation_of(name)
    assert activation is not None
    layer = nn.Linear(48, 96, dtype=dtype).requires_grad_(False)
    x = torch.randn(20, 48, dtype=dtype)
    found = LinearGroup((nn.ModuleDict({"up": layer}), "up")).joined(dtype).activated(x, activation)
    exact = ACT2FN[name](x.double() @ layer.weight.double().T + layer.bias.double())
    once = 2**-8 if has_blocks() else 2**-7  # bf16: rounded once, or behind the product as well
    assert_close(found.double(), exact, rtol=once if dtype is torch.bfloat16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_transformers_activation(name: str) -> None:
    activation = activation_of(name)
    assert activation is not None
    x = torch.linspace(-8, 8, 1001)
    assert_close(activation(x), ACT2FN[name](x), rtol=1e-5, atol=1e-6)


def test_an_unknown_activation_is_none() -> None:
    assert activation_of("quick_gelu_of_tomorrow") is None
