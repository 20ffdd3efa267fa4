"""The token store and the preview, with a tokenizer of one token a character."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_tables import phrase, write_csv

from veneer.data import DataConfig, prepare, tokenize, tokens
from veneer.data.preview import PreviewText, ShownToken, preview
from veneer.data.rows import Split
from veneer.data.tokens import length_stats
from veneer.errors import ConfigError

TEXTS = st.lists(st.lists(st.text(st.characters(max_codepoint=1000), max_size=30), max_size=5), max_size=5)


def characters(texts: list[str]) -> list[list[int]]:
    """1, the code points, 2: as a tokenizer with a special token at either end."""
    return [[1, *map(ord, text), 2] for text in texts]


@given(TEXTS, st.sampled_from([None, 500]))
def test_what_is_stored_comes_back(pieces: list[list[str]], vocab_size: int | None) -> None:
    store = tokenize(pieces, characters, vocab_size=70_000 if vocab_size is None else vocab_size)
    expected = [ids for piece in pieces for ids in characters(piece)]
    assert [store[i].tolist() for i in range(len(store))] == expected
    assert store.lengths.tolist() == [len(ids) for ids in expected]
    assert store.ids.dtype == (np.int32 if vocab_size is None else np.uint16)
    assert store.cut == 0


@given(TEXTS, st.integers(3, 12), st.sampled_from(["left", "right"]))
def test_what_is_too_long_is_cut_between_the_special_tokens(
    pieces: list[list[str]], most: int, side: str
) -> None:
    store = tokenize(pieces, characters, max_length=most, prefix=1, suffix=1, side=side)  # type: ignore[arg-type]
    texts = [text for piece in pieces for text in piece]
    room = most - 2
    kept = [text[:room] if side == "right" else text[max(0, len(text) - room) :] for text in texts]
    assert [store[i].tolist() for i in range(len(store))] == characters(kept)
    assert store.cut == sum(len(text) > room for text in texts)
    assert store.longest == max((len(text) + 2 for text in texts), default=0)


def test_a_large_store_is_a_mapped_file_with_the_same_content(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [[f"text {i} {j}" for j in range(20)] for i in range(20)]
    plain = tokenize(pieces, characters)
    monkeypatch.setattr(tokens, "IN_MEMORY_TOKENS", 100)
    mapped = tokenize(pieces, characters)
    assert isinstance(mapped.ids, np.memmap)
    np.testing.assert_array_equal(mapped.ids, plain.ids)
    np.testing.assert_array_equal(mapped[7], plain[7])


def test_limits_and_places_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"max_length is 2, and 2 special tokens take that up"):
        tokenize([["a"]], characters, max_length=2, prefix=1, suffix=1)
    store = tokenize([["a", "b"]], characters)
    assert store[-1].tolist() == [1, ord("b"), 2]
    with pytest.raises(IndexError, match="text 2 of 2"):
        store[2]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200))
def test_length_statistics(lengths: list[int]) -> None:
    stats = length_stats(np.array(lengths, np.int32))
    assert (stats.texts, stats.total, stats.shortest, stats.longest) == (
        len(lengths), sum(lengths), min(lengths), max(lengths),
    )  # fmt: skip
    assert stats.mean == pytest.approx(sum(lengths) / len(lengths))
    ordered = sorted(lengths)
    assert stats.percentiles[50] == ordered[-(-len(lengths) // 2) - 1]


def show(text: str) -> list[ShownToken]:
    return [ShownToken("[CLS]", special=True), *map(ShownToken, text), ShownToken("[SEP]", special=True)]


def lengths_of(rows: Split) -> NDArray[np.int32]:
    return np.array([len(ids) for ids in characters(rows.texts())], np.int32)


def shown(rows: Split, place: int) -> PreviewText:
    tokens = tuple(show(rows[place]))
    return PreviewText(rows.name, place, ("abc"[rows.labels[place]],), len(tokens), rows[place], tokens)


def test_the_preview_counts_what_the_model_reads(tmp_path: Path) -> None:
    texts = [phrase(i) for i in range(60)]
    path = write_csv(tmp_path / "x.csv", {"text": texts, "label": ["abc"[i % 3] for i in range(60)]})
    prepared = prepare(DataConfig(source=str(path)))
    seen = preview(prepared, lengths_of, shown, max_length=36, n=3)
    lengths = [len(text) + 2 for text in prepared.train.texts()]
    assert seen.lengths["train"].longest == max(lengths)
    assert seen.cut["train"] == sum(n > 36 for n in lengths)
    assert sum(n for _, n in seen.histogram) == len(prepared.train) == seen.measured["train"]
    assert seen.histogram[-1][0] >= max(lengths)
    assert {label for example in seen.examples for label in example.labels} == {"a", "b", "c"}
    assert seen.longest is not None
    assert seen.shortest is not None
    assert seen.longest.length == max(lengths)
    assert seen.shortest.length == min(lengths)
    assert "".join(t.text for t in seen.longest.tokens if not t.special) == seen.longest.text
    assert seen.label_counts["train"] == prepared.label_counts(prepared.train)
