"""Properties of the packed batch: nothing is lost, doubled or mixed up, whatever the lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veneer.engine import PackedBatch, pack
from veneer.engine.packing import layout_of

TEXTS = st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=40), min_size=1, max_size=25)


def unpacked(batch: PackedBatch) -> list[list[int]]:
    """The texts of a batch in the caller's order."""
    ends = batch.layout.cu_seqlens.tolist()
    parts = [batch.input_ids[a:b].tolist() for a, b in itertools.pairwise(ends)]
    found: list[list[int]] = [[] for _ in parts]
    for place, number in enumerate(batch.order):
        found[number] = parts[place]
    return found


@given(TEXTS)
def test_unpacking_gives_the_texts_back(texts: list[list[int]]) -> None:
    batch = pack(texts)
    assert unpacked(batch) == texts
    assert batch.tokens == sum(map(len, texts)) == batch.layout.tokens
    assert len(batch) == len(texts)
    assert batch.layout.longest == max(map(len, texts))


@given(TEXTS)
def test_the_order_is_a_permutation_that_sorts_by_length_and_is_stable(texts: list[list[int]]) -> None:
    order = pack(texts).order
    assert list(order) == sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))


@given(TEXTS)
def test_positions_restart_with_each_text(texts: list[list[int]]) -> None:
    batch = pack(texts)
    expected = [place for length in batch.layout.lengths for place in range(length)]
    assert batch.position_ids.tolist() == expected


@given(TEXTS)
def test_first_last_and_owner_of_each_token(texts: list[list[int]]) -> None:
    batch = pack(texts)
    layout = batch.layout
    assert batch.input_ids[layout.first].tolist() == [texts[i][0] for i in batch.order]
    assert batch.input_ids[layout.last].tolist() == [texts[i][-1] for i in batch.order]
    assert layout.text_of_token.bincount().tolist() == list(layout.lengths)
    assert bool((layout.text_of_token.diff() >= 0).all())


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
@settings(deadline=None)
def test_the_groups_hold_every_token_once(lengths: list[int]) -> None:
    layout = layout_of(sorted(lengths))
    tokens, texts = 0, 0
    for group in layout.groups:
        assert group.start == tokens
        inside = layout.lengths[texts : texts + group.n]
        assert group.longest - 32 < max(inside) <= group.longest
        assert group.end - group.start == sum(inside)
        if group.gather is None:
            assert group.valid is None
            assert group.padding is None
            assert set(inside) == {group.longest}
        else:
            assert group.valid is not None
            assert group.padding is not None
            row = torch.arange(group.end - group.start)
            padded = row[group.gather]
            assert torch.equal(padded[group.valid], row)  # each token once, in order
            assert len(set(group.valid.tolist())) == len(row)
            real = (~group.padding).reshape(-1).nonzero().squeeze(1)
            assert torch.equal(real, group.valid)
            assert (~group.padding).squeeze(1).sum(1).tolist() == list(inside)
        tokens, texts = group.end, texts + group.n
    assert (tokens, texts) == (layout.tokens, len(lengths))


@given(TEXTS)
def test_segments_travel_with_their_tokens(texts: list[list[int]]) -> None:
    batch = pack(texts, token_type_ids=texts)  # the ids themselves, so that a mix-up shows
    assert batch.token_type_ids is not None
    assert torch.equal(batch.token_type_ids, batch.input_ids)


def test_a_batch_moves_whole_to_another_device() -> None:
    moved = pack([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]], [[0] * 3, [0], [1] * 11]).to(
        "meta"
    )
    tensors = [moved.input_ids, moved.position_ids, moved.layout.cu_seqlens, moved.token_type_ids]
    tensors += [t for g in moved.layout.groups for t in (g.gather, g.valid, g.padding)]
    assert {t.device.type for t in tensors if t is not None} == {"meta"}


def test_a_text_without_tokens_is_refused() -> None:
    for texts in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one"):
            pack(texts)


def test_numpy_arrays_of_a_token_store_are_taken_as_they_are() -> None:
    texts = [np.array([65_535, 1], np.uint16), np.array([3], np.int32)]
    assert pack(texts).input_ids.tolist() == [3, 65_535, 1]
