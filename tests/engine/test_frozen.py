"""A frozen weight in blocks gives the plain products, for every shape that is not a multiple of a block."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from veneer.engine import frozen
from veneer.engine.frozen import FrozenLinear
from veneer.engine.linears import LinearGroup
from veneer.engine.native import kernels


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 8), (7, 33, 50), (300, 64, 96), (1040, 64, 96)])
def test_product_and_input_gradient(
    shape: tuple[int, int, int], dtype: torch.dtype, transposed: bool
) -> None:
    T, n, m = shape
    torch.manual_seed(0)
    x, W, b = torch.randn(T, n), torch.randn(m, n) / n**0.5, torch.randn(m)
    residual, grad = torch.randn(T, m), torch.randn(T, m)
    layer = FrozenLinear((W.t().contiguous() if transposed else W).to(dtype), transposed=transposed)
    # bf16 keeps 8 bits: an input rounding of 2^-9 for each of n products, and one of the result
    bounds = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    product = layer.product(x.to(dtype), b.to(dtype))
    assert product.dtype is dtype
    assert_close(product.float(), x @ W.t() + b, **bounds)
    added = layer.product(x.to(dtype), b.to(dtype), residual.to(dtype))
    assert_close(added.float(), x @ W.t() + b + residual, **bounds)
    assert_close(layer.product(x.to(dtype), None).float(), x @ W.t(), **bounds)
    assert_close(layer.input_gradient(grad.to(dtype)).float(), grad @ W, **bounds)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 40, 2)])
def test_rows_that_do_not_lie_together(rows: slice) -> None:
    layer = FrozenLinear(torch.randn(24, 16, dtype=torch.bfloat16), transposed=False)
    x = torch.randn(40, 32, dtype=torch.bfloat16)[rows, :16]
    assert_close(layer.product(x, None), layer.product(x.contiguous(), None), rtol=0, atol=0)


def test_without_blocks_the_plain_products_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    W, x = torch.randn(24, 16, dtype=torch.bfloat16), torch.randn(5, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(frozen, "has_blocks", lambda: False)
    plain = FrozenLinear(W, transposed=False)
    assert torch.equal(plain.product(x, None), x @ W.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_weight_is_laid_out_anew(dtype: torch.dtype) -> None:
    parent = nn.Module()
    parent.a = nn.Linear(64, 32).requires_grad_(False).to(dtype)
    group = LinearGroup((parent, "a"))
    x = torch.randn(3, 64, dtype=dtype)
    before = group(x)
    with torch.no_grad():
        parent.a.weight.mul_(2.0)
        parent.a.bias.mul_(2.0)
    assert_close(group(x), 2 * before, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kept", [True, False])
def test_fp32_goes_to_the_kernels_where_they_have_it(kept: bool) -> None:
    layer = FrozenLinear(torch.randn(48, 32), transposed=False, keep=kept)
    x, compiled = torch.randn(7, 32), kernels()
    takes = compiled is not None and compiled.takes_frozen(torch.float32, 48, 32)
    found = layer.adapted(x, None, None)
    assert (found is not None) == (kept and takes)
    if found is not None:
        assert_close(found[0], x @ layer.weight.t(), rtol=1e-5, atol=1e-5)
    assert layer.adapted(x.bfloat16(), None, None) is None
