"""Packed attention against `scaled_dot_product_attention`, text by text, in float64.

Tolerance 1e-12 in float64: only the order of sums differs. The gradient is held against the oracle's and against finite
differences.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from veneer.engine import attention
from veneer.engine.attention import AttentionPattern, packed_attention
from veneer.engine.packing import Layout, layout_of

HEADS, SIZE = 4, 8
PATTERNS = {
    "everything": AttentionPattern(),
    "causal": AttentionPattern(after=0),
    "causal window": AttentionPattern(before=3, after=0),
    "two-sided window": AttentionPattern(before=2, after=2),
    "uneven window": AttentionPattern(before=5, after=1),
    "self only": AttentionPattern(before=0, after=0),
    "ahead only": AttentionPattern(before=0),
}
LENGTHS = {
    "mixed": (1, 1, 2, 5, 6, 6, 14, 20),
    "equal": (7, 7, 7),
    "one token": (1,),
    "blocks": (3, 270, 300, 520),
}


def states(layout: Layout, kv_heads: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(HEADS, layout.tokens, SIZE), *[(kv_heads, layout.tokens, SIZE)] * 2]
    return [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def oracle(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, pattern: AttentionPattern, scaling: float
) -> Tensor:
    """Each text by itself."""
    out, start = [], 0
    for length in layout.lengths:
        place = torch.arange(length)
        distance = place - place.unsqueeze(1)
        seen = torch.ones(length, length, dtype=torch.bool)
        if pattern.before is not None:
            seen &= distance >= -pattern.before
        if pattern.after is not None:
            seen &= distance <= pattern.after
        part = slice(start, start + length)
        one = scaled_dot_product_attention(
            q[:, part], k[:, part], v[:, part], attn_mask=seen, scale=scaling, enable_gqa=True
        )
        out.append(one.transpose(0, 1))
        start += length
    return torch.cat(out)


def check(pattern: AttentionPattern, lengths: tuple[int, ...], kv_heads: int = HEADS) -> None:
    layout = layout_of(lengths)
    q, k, v = states(layout, kv_heads)
    weights = torch.randn(layout.tokens, HEADS, SIZE, dtype=torch.float64)
    expected = oracle(q, k, v, layout, pattern, 0.3)
    gradients = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    found = packed_attention(q, k, v, layout, pattern, scaling=0.3)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad((found * weights).sum(), (q, k, v))
    torch.testing.assert_close(ours, gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_output_and_gradients(pattern: str, lengths: str) -> None:
    check(PATTERNS[pattern], LENGTHS[lengths])


@pytest.mark.parametrize("lengths", ["mixed", "blocks"])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("pattern", ["everything", "causal", "causal window"])
def test_key_value_heads_shared_by_query_heads(pattern: str, kv_heads: int, lengths: str) -> None:
    check(PATTERNS[pattern], LENGTHS[lengths], kv_heads)


def softcapped(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, pattern: AttentionPattern, cap: float
) -> Tensor:
    out, start = [], 0
    for length in layout.lengths:
        part = slice(start, start + length)
        scores = cap * torch.tanh(0.3 * q[:, part] @ k[:, part].transpose(1, 2) / cap)
        if pattern.after == 0:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        out.append((scores.softmax(-1) @ v[:, part]).transpose(0, 1))
        start += length
    return torch.cat(out)


@pytest.mark.parametrize("lengths", ["mixed", "equal", "blocks"])
@pytest.mark.parametrize("pattern", ["everything", "causal"])
def test_softcap(pattern: str, lengths: str) -> None:
    """c * tanh(scores / c), Gemma 2 (arXiv:2408.00118, section 2)."""
    layout = layout_of(LENGTHS[lengths])
    q, k, v = states(layout)
    weights = torch.randn(layout.tokens, HEADS, SIZE, dtype=torch.float64)
    expected = softcapped(q, k, v, layout, PATTERNS[pattern], 0.5)
    found = packed_attention(q, k, v, layout, PATTERNS[pattern], scaling=0.3, softcap=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("pattern", ["everything", "causal", "two-sided window"])
@pytest.mark.parametrize("kept", [4, 256])
def test_gradient_against_finite_differences(
    pattern: str, softcap: float | None, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in blocks, with a block so small that finite differences can be afforded."""
    monkeypatch.setattr(attention, "KEPT_TOKENS", kept)
    monkeypatch.setattr(attention, "BLOCK_ROWS", kept)
    layout = layout_of((1, 3, 4, 6))
    draw = torch.Generator().manual_seed(1)
    q = torch.randn(2, layout.tokens, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(1, layout.tokens, 3, generator=draw, dtype=torch.float64, requires_grad=True)
        for _ in "kv"
    )

    def run(*qkv: Tensor) -> Tensor:
        return packed_attention(*qkv, layout, PATTERNS[pattern], scaling=0.6, softcap=softcap)

    assert torch.autograd.gradcheck(run, (q, k, v))


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_where_only_one_input_needs_a_gradient(wanted: str) -> None:
    layout = layout_of(LENGTHS["mixed"])
    inputs = dict(zip("qkv", states(layout), strict=True))
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == wanted)
    found = packed_attention(*inputs.values(), layout, PATTERNS["causal"], scaling=0.3)
    expected = oracle(*inputs.values(), layout, PATTERNS["causal"], 0.3)
    grads = [torch.autograd.grad(x.square().sum(), inputs[wanted])[0] for x in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


def test_without_gradients_nothing_is_kept_and_the_result_is_the_same() -> None:
    layout = layout_of(LENGTHS["mixed"])
    q, k, v = states(layout)
    with_grad = packed_attention(q, k, v, layout, PATTERNS["everything"], scaling=0.3)
    with torch.inference_mode():
        without = packed_attention(q, k, v, layout, PATTERNS["everything"], scaling=0.3)
    assert without.grad_fn is None
    torch.testing.assert_close(without, with_grad.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", ["mixed", "equal"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_dropout_keeps_the_mean_and_drops_the_share(pattern: str, lengths: str) -> None:
    """With v = 1 each output is the sum of the kept weights / (1 - p): its mean is 1, and gradients flow."""
    layout = layout_of(LENGTHS[lengths])
    q, k, v = states(layout)
    ones = torch.ones_like(v)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack(
            [
                packed_attention(q, k, ones, layout, PATTERNS[pattern], scaling=0.3, dropout=0.25)
                for _ in range(300)
            ]
        )
    mean, dropped = float(draws.mean().detach()), float((draws == 0).double().mean())
    assert abs(mean - 1.0) < 0.03  # 300 x tokens x heads draws: three standard deviations and more
    assert 0.0 < dropped <= 0.27
    draws.sum().backward()
    assert q.grad is not None
    assert bool(torch.isfinite(q.grad).all())


def test_dropout_of_next_to_nothing_is_the_plain_result() -> None:
    layout = layout_of(LENGTHS["mixed"])
    q, k, v = states(layout)
    for pattern in PATTERNS.values():
        plain = packed_attention(q, k, v, layout, pattern, scaling=0.3)
        dropped = packed_attention(q, k, v, layout, pattern, scaling=0.3, dropout=1e-12)
        torch.testing.assert_close(dropped, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", ["everything", "causal", "two-sided window"])
def test_bfloat16_is_near_float32(pattern: str) -> None:
    """8 bits of mantissa: 2^-8 of values of size about 1, a few roundings deep."""
    layout = layout_of(LENGTHS["mixed"])
    exact = packed_attention(*states(layout), layout, PATTERNS[pattern], scaling=0.3)
    rounded = packed_attention(*states(layout, dtype=torch.bfloat16), layout, PATTERNS[pattern], scaling=0.3)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [4, 16, 64])
def test_other_head_sizes(size: int) -> None:
    layout = layout_of((2, 9))
    q, k, v = (torch.randn(2, layout.tokens, size, dtype=torch.float64) for _ in range(3))
    found: Any = packed_attention(q, k, v, layout, PATTERNS["causal"], scaling=0.1)
    torch.testing.assert_close(found, oracle(q, k, v, layout, PATTERNS["causal"], 0.1), rtol=0, atol=1e-12)
