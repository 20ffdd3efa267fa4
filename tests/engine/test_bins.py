"""Texts in bins: each lies whole in one, none sees another, and attention over them is attention text by text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from veneer.engine.bins import bins_of, one_text_each
from veneer.engine.packing import layout_of
from veneer.engine.row_attention import attend_read, attend_rows

LENGTHS = {
    "one short": [3],
    "short": [1, 2, 5, 9, 9, 14, 20, 31],
    "mixed": [2, 7, 12, 12, 30, 33, 64, 65, 70, 120],
    "full": [32, 32, 64],
    "long": [5, 100, 250, 256],
}


@given(st.lists(st.integers(1, 256), min_size=1, max_size=80))
@settings(max_examples=150, deadline=None)
def test_every_text_lies_whole_in_one_bin(lengths: list[int]) -> None:
    layout = layout_of(sorted(lengths))
    for kinds in (bins_of(layout), one_text_each(layout)):
        seen: list[int] = []
        for bins in kinds:
            assert bins.places % 32 == 0
            for token, text in zip(bins.token, bins.text, strict=True):
                taken = token < layout.tokens
                assert (taken == (text >= 0)).all()
                for number in set(text[taken].tolist()):
                    places = (text == number).nonzero()[0]
                    first = int(layout.cu_seqlens[number])
                    assert places.tolist() == list(range(places[0], places[0] + layout.lengths[number]))
                    assert token[places].tolist() == list(range(first, first + layout.lengths[number]))
                    seen.append(number)
        assert sorted(seen) == list(range(len(lengths)))


def test_short_texts_share_bins() -> None:
    (bins,) = bins_of(layout_of([10, 10, 11, 12, 13, 16]))
    assert bins.places == 32
    assert bins.n < 6
    assert not bins.alone


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_attention_is_that_of_each_text(lengths: list[int], causal: bool) -> None:
    """Against PyTorch's function on one text after the other, in fp64, with gradients."""
    torch.manual_seed(0)
    heads, size, layout = 3, 8, layout_of(lengths)
    qkv = torch.randn(layout.rows, 3 * heads * size, dtype=torch.float64)
    qkv[layout.tokens :] = 1e3  # rows behind the texts must not be seen
    rows, plain = qkv.clone().requires_grad_(True), qkv.clone().requires_grad_(True)
    found = attend_rows(rows, layout, heads, 0.3, causal=causal)
    parts = []
    for text in plain[: layout.tokens].split(list(layout.lengths)):
        q, k, v = text.view(len(text), 3, heads, size).permute(1, 2, 0, 3)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
        parts.append(out.transpose(0, 1).flatten(1))
    expected = torch.cat(parts)
    assert_close(found[: layout.tokens], expected)
    weights = torch.randn_like(expected)
    (found[: layout.tokens] * weights).sum().backward()
    (expected * weights).sum().backward()
    assert rows.grad is not None
    assert plain.grad is not None
    assert_close(rows.grad, plain.grad)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_one_place_of_each_text_looks_at_all_of_it(lengths: list[int]) -> None:
    torch.manual_seed(0)
    heads, size, layout = 2, 8, layout_of(lengths)
    q = torch.randn(len(lengths), heads * size)
    kv = torch.randn(layout.rows, 2 * heads * size)
    found = attend_read(q, kv, layout, heads, 0.3)
    for i, text in enumerate(kv[: layout.tokens].split(list(layout.lengths))):
        k, v = text.view(len(text), 2, heads, size).permute(1, 2, 0, 3)
        query = q[i].view(heads, 1, size)
        expected = nn.functional.scaled_dot_product_attention(query, k, v, scale=0.3)
        assert_close(found[i], expected.flatten(), rtol=1e-5, atol=1e-6)
