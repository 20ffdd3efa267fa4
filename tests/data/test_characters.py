"""Spans of whole visible characters, against lists of characters that Unicode's annex 29 calls one each."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veneer.data.characters import whole_characters

CLUSTERS = [
    "a", " ", "\n", "e\u0301", "e\u0301\u0323", "न\u093f", "😀", "👍🏽", "👩\u200d👩\u200d👧", "🐈\u200d⬛", "🇩🇪",
    "🏳\ufe0f\u200d🌈", "x",
]  # fmt: skip


@given(st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=12), st.data())
def test_a_span_grows_to_whole_clusters_and_no_further(clusters: list[str], data: st.DataObject) -> None:
    text = "".join(clusters)
    edges = [0, *itertools.accumulate(map(len, clusters))]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    low, high = whole_characters(text, start, end)
    assert low == max(edge for edge in edges if edge <= start)
    assert high == min(edge for edge in edges if edge >= end)


@pytest.mark.parametrize(
    ("text", "start", "end", "expected"), [("", 0, 0, (0, 0)), (" \u0301a", 1, 2, (1, 2))]
)
def test_at_the_edges(text: str, start: int, end: int, expected: tuple[int, int]) -> None:
    assert whole_characters(text, start, end) == expected
