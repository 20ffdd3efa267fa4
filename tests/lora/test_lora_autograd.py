"""The hand-written product and gradient, against PyTorch's own gradients and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from veneer.lora import lora_linear

N, M, R, S = 5, 7, 2, 1.7


def tensors(
    dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2, 3), transposed: bool = False
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)

    return [draw(*shape, N), draw(N, M) if transposed else draw(M, N), draw(M), draw(R, N), draw(M, R)]


def plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, transposed: bool = False
) -> Tensor:
    """The definition, by PyTorch's own operations."""
    y = x @ (weight if transposed else weight.t()) + S * (x @ A.t()) @ B.t()
    return y if bias is None else y + bias


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
def test_gradcheck(transposed: bool, with_bias: bool) -> None:
    x, weight, bias, A, B = tensors(transposed=transposed)

    def function(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return lora_linear(x, weight, bias if with_bias else None, A, B, S, transposed=transposed)

    assert torch.autograd.gradcheck(function, (x, weight, bias, A, B))


@pytest.mark.parametrize("needs", [(i,) for i in range(5)] + [(0, 3, 4), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
def test_only_the_gradients_that_are_asked_for(needs: tuple[int, ...], transposed: bool) -> None:
    given = [t.detach().requires_grad_(i in needs) for i, t in enumerate(tensors(transposed=transposed))]
    wanted = [t.detach().requires_grad_(i in needs) for i, t in enumerate(tensors(transposed=transposed))]
    lora_linear(*given, S, transposed=transposed).square().sum().backward()
    plain(*wanted, transposed=transposed).square().sum().backward()
    for ours, theirs in zip(given, wanted, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)  # fp64: rounding only


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 2, 3), (0,), ()], ids=str)
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    given, wanted = tensors(shape=shape), tensors(shape=shape)
    ours, theirs = lora_linear(*given, S), plain(*wanted)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.sum().backward()
    theirs.sum().backward()
    assert_close(given[0].grad, wanted[0].grad, rtol=1e-12, atol=1e-12)


def test_an_input_that_is_not_contiguous() -> None:
    given, wanted = tensors(), tensors()
    given[0] = given[0].detach().transpose(0, 1).requires_grad_(True)
    wanted[0] = wanted[0].detach().transpose(0, 1).requires_grad_(True)
    lora_linear(*given, S).square().sum().backward()
    plain(*wanted).square().sum().backward()
    for ours, theirs in zip(given, wanted, strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def saved_by(function: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that the graph of a call keeps, each memory once."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function()
    return list({t.data_ptr(): t for t in kept}.values())


def test_nothing_wide_is_kept_but_the_input() -> None:
    x, weight, bias, A, B = tensors(torch.bfloat16)
    A, B = (t.detach().float().requires_grad_(True) for t in (A, B))
    weight, bias = weight.detach(), bias.detach()
    kept = saved_by(lambda: lora_linear(x, weight, bias, A, B, S))
    own = {t.data_ptr() for t in (x, weight, A, B)}
    others = [tuple(t.shape) for t in kept if t.data_ptr() not in own]
    assert others == [(6, R)]  # h alone is new memory


def test_with_dropout_a_mask_of_bytes_is_kept() -> None:
    x, weight, bias, A, B = tensors(torch.float32)
    kept = saved_by(lambda: lora_linear(x, weight.detach(), bias.detach(), A, B, S, dropout=0.5))
    own = {t.data_ptr() for t in (x, weight, A, B)}
    others = [(tuple(t.shape), t.dtype) for t in kept if t.data_ptr() not in own]
    assert sorted(others, key=str) == sorted([((6, R), torch.float32), ((6, N), torch.bool)], key=str)


def test_no_grad_keeps_nothing() -> None:
    given = tensors()
    with torch.no_grad():
        y = lora_linear(*given, S)
    assert y.grad_fn is None
    assert_close(y, plain(*given), rtol=1e-12, atol=1e-12)


def test_frozen_factors_need_no_input() -> None:
    x, weight, bias, A, B = tensors()
    A, B, weight, bias = (t.detach() for t in (A, B, weight, bias))
    kept = saved_by(lambda: lora_linear(x, weight, bias, A, B, S))
    assert x.data_ptr() not in {t.data_ptr() for t in kept}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    given, wanted = tensors(), tensors()
    checkpoint(lora_linear, *given, S, use_reentrant=reentrant).square().sum().backward()
    lora_linear(*wanted, S).square().sum().backward()
    for ours, theirs in zip(given, wanted, strict=True):
        assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_a_layer_used_twice_adds_its_gradients() -> None:
    given, wanted = tensors(), tensors()

    def twice(product: Callable[..., Tensor], args: list[Tensor]) -> Tensor:
        x, *rest = args
        return product(torch.tanh(product(x, *rest)[..., :N]), *rest).square().sum()

    twice(lambda *args: lora_linear(*args, S), given).backward()
    twice(plain, wanted).backward()
    for ours, theirs in zip(given, wanted, strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-11)


def test_bf16_input_with_fp32_factors() -> None:
    x, weight, bias, A, B = tensors(torch.bfloat16, shape=(64,))
    A, B = (t.detach().float().requires_grad_(True) for t in (A, B))
    y = lora_linear(x, weight.detach(), bias.detach(), A, B, S)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert A.grad is not None
    assert B.grad is not None
    assert (A.grad.dtype, B.grad.dtype) == (torch.float32, torch.float32)
    exact = [t.detach().float().requires_grad_(True) for t in (x, weight, bias, A, B)]
    wanted = plain(*exact)
    wanted.square().sum().backward()
    # bf16 has 8 bits: a relative error of 2^-8 for each of a few roundings, against the size of the whole tensor.
    for ours, theirs in ((y.float(), wanted), (A.grad, exact[3].grad), (B.grad, exact[4].grad)):
        assert (ours - theirs).norm() / theirs.norm() < 0.02


def test_autocast_computes_as_a_linear_layer_would() -> None:
    x, weight, bias, A, B = tensors(torch.float32, shape=(16,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lora_linear(x, weight, bias, A, B, S)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert (y.float() - plain(x, weight, bias, A, B)).norm() / y.float().norm() < 0.02  # bf16 rounding


def test_dropout_is_the_same_mask_as_pytorch_draws() -> None:
    """With PyTorch's seed the masked product is exactly dropout(x) A^T B^T, and so are its gradients."""
    given, wanted = tensors(torch.float32, shape=(200,)), tensors(torch.float32, shape=(200,))
    torch.manual_seed(4)
    lora_linear(*given, S, dropout=0.3).square().sum().backward()
    torch.manual_seed(4)
    x, weight, bias, A, B = wanted
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(0.7)
    y = x @ weight.t() + bias + S * ((x * keep / 0.7) @ A.t()) @ B.t()
    y.square().sum().backward()
    assert 0.65 < keep.float().mean() < 0.75
    for ours, theirs in zip(given, wanted, strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-3)  # fp32 sums over 200 tokens


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x, weight, bias, A, B = (t.detach() for t in tensors(torch.float32, shape=(1,)))
    many = torch.stack([lora_linear(x, weight, bias, A, B, S, dropout=0.5) for _ in range(4000)])
    spread = many.std(0) / 4000**0.5
    assert bool(((many.mean(0) - plain(x, weight, bias, A, B)).abs() < 5 * spread + 1e-6).all())  # five sigma
