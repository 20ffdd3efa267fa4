"""The head's cross-entropy in pieces, against torch's own on the whole logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from veneer.engine.token_loss import logits_of, token_losses
from veneer.lora import LoraConfig, adapter_parameters, attach

S, C, V = 23, 16, 101
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}  # fp32 sums of 101 terms in another order


def _case(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(S, C, generator=generator).to(dtype).requires_grad_()
    head = nn.Linear(C, V, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    head.requires_grad_(False)
    return states, torch.randint(V, (S,), generator=generator), head


def _plain(states: Tensor, targets: Tensor, head: nn.Module, smooth: float, cap: float | None) -> Tensor:
    logits = head(states).float()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smooth)


def _summed(states: Tensor, targets: Tensor, head: nn.Module, **more: Any) -> Tensor:
    return token_losses(states, targets, head, **more)[:, 0].sum()


@pytest.mark.parametrize("piece", [1, 7, S, 1000, None])
@pytest.mark.parametrize(("smooth", "cap"), [(0.0, None), (0.1, None), (0.0, 3.0)])
def test_value_and_gradient_are_those_of_the_whole_logits(
    piece: int | None, smooth: float, cap: float | None
) -> None:
    states, targets, head = _case(bias=True)
    expected = _plain(states, targets, head, smooth, cap)
    (wanted,) = torch.autograd.grad(expected / S, states)
    found = _summed(states, targets, head, label_smoothing=smooth, softcap=cap, piece=piece)
    (gradient,) = torch.autograd.grad(found / S, states)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient, wanted, **TOLERANCE)


@pytest.mark.parametrize("few", [1, 3, S])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_how_many_logits_are_in_fp32_at_a_time_changes_no_bit(
    few: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, targets, head = _case(bias=True, dtype=dtype)
    found = []
    for values in (2**30, few * V):
        monkeypatch.setattr("veneer.engine.token_loss._CACHED_VALUES", values)
        losses = token_losses(states, targets, head)
        found.append((losses, *torch.autograd.grad(losses[:, 0].sum(), states)))
    for whole, parts in zip(*found, strict=True):
        assert torch.equal(whole, parts)


def test_against_float64() -> None:
    states, targets, head = _case()
    found = _summed(states, targets, head, piece=5)
    logits = states.detach().double() @ head.weight.double().t()
    expected = (logits.logsumexp(1) - logits[torch.arange(S), targets]).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)


def test_a_trained_head_gets_its_gradient() -> None:
    states, targets, head = _case(bias=True)
    head.requires_grad_(True)
    wanted = torch.autograd.grad(_plain(states, targets, head, 0.0, None), [states, *head.parameters()])
    found = torch.autograd.grad(_summed(states, targets, head, piece=6), [states, *head.parameters()])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def test_a_head_with_lora_gets_the_adapters_gradients() -> None:
    class Model(nn.Module):
        def __init__(self, head: nn.Linear) -> None:
            super().__init__()
            self.lm_head = head

    states, targets, head = _case()
    model = Model(copy.deepcopy(head))
    attach(model, LoraConfig(r=3, target_modules=("lm_head",)), seed=1)
    weights = [p for _, p in adapter_parameters(model)]
    with torch.no_grad():
        for p in weights:
            p.add_(0.1)
    wanted = torch.autograd.grad(_plain(states, targets, model.lm_head, 0.0, None), [states, *weights])
    found = torch.autograd.grad(_summed(states, targets, model.lm_head, piece=6), [states, *weights])
    assert len(found) == 3
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def test_hooks_on_the_head_count() -> None:
    states, targets, head = _case()
    head.register_forward_hook(lambda _m, _x, y: y * 0.5)
    expected = _plain(states, targets, head, 0.0, None)
    torch.testing.assert_close(_summed(states, targets, head, piece=9), expected, rtol=1e-5, atol=1e-4)


def test_bf16_weights_are_as_near_to_float32_as_whole_bf16_logits() -> None:
    states, targets, head = _case(dtype=torch.bfloat16)
    exact = _plain(states.float(), targets, copy.deepcopy(head).float(), 0.0, None)
    theirs = _plain(states, targets, head, 0.0, None)
    found = _summed(states, targets, head, piece=8)
    assert found.dtype is torch.float32
    assert abs(found - exact) <= abs(theirs - exact) + 1e-3 * abs(exact)
    (gradient,) = torch.autograd.grad(found, states)
    (wanted,) = torch.autograd.grad(exact, states)
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=0.1)  # 8 bits of mantissa, 101 terms


def test_a_changed_weight_is_seen() -> None:
    states, targets, head = _case()
    first = _summed(states, targets, head)
    with torch.no_grad():
        head.weight.mul_(0.5)
    torch.testing.assert_close(
        _summed(states, targets, head), _plain(states, targets, head, 0.0, None), rtol=1e-5, atol=1e-4
    )
    assert first.item() != pytest.approx(_summed(states, targets, head).item())


def test_no_label_no_loss() -> None:
    states, targets, head = _case()
    found = _summed(states[:0], targets[:0], head)
    assert found.item() == 0.0
    found.backward()


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("gradients", [True, False])
def test_each_tokens_loss_and_the_likeliest(cap: float | None, gradients: bool) -> None:
    states, targets, head = _case()
    weights = torch.linspace(0.1, 2.0, S)
    logits = logits_of(head, states, cap)
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(gradients):
        found = token_losses(states, targets, head, softcap=cap, piece=4)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert (found[:, 1] == 0).tolist() == (logits.argmax(1) == targets).tolist()
    below = logits[torch.arange(S), targets] - logits.amax(1)
    torch.testing.assert_close(found[:, 1], below, rtol=1e-5, atol=1e-5)
    assert found.requires_grad == gradients
    if gradients:
        (wanted,) = torch.autograd.grad((expected * weights).sum(), states)
        (gradient,) = torch.autograd.grad((found[:, 0] * weights).sum(), states)
        torch.testing.assert_close(gradient, wanted, **TOLERANCE)


def test_the_whole_logits_never_exist() -> None:
    """No tensor that is made has more than a piece's logits (five tokens are filled up to eight rows)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(one, Tensor) and one.shape[-1:] == (V,) and one.shape[0] != C:  # W^T
                    largest = max(largest, one.numel())
            return out

    states, targets, head = _case()
    with Watch():
        _summed(states, targets, head, piece=5).backward()
    assert largest == 8 * V
