"""Words and their tokens, for the tokenizers of four families. Oracle: transformers' own `is_split_into_words`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_of_families import TOKENIZERS

from veneer.data.ragged import Ragged
from veneer.data.tags import bio_labels
from veneer.data.words import join_words, words_of
from veneer.errors import BaseError, ConfigError
from veneer.tasks.entities import Entities
from veneer.tasks.word_tokens import READ, word_tokens

NAMES = st.sampled_from(sorted(TOKENIZERS))
ODD = st.text(
    st.sampled_from("aé中ょ1_ .,'-@#(\t\u00a0\u200b\u200d\u0301\ufe0f👍🏽🇩🇪😀st")
    | st.sampled_from("the new york paul don't") | st.characters(codec="utf-8"),
    max_size=30,
)  # fmt: skip
WORDS = ["New", "York", "don't", "x", "Zoé", "👍🏽", "(", "@paul", "cafe\u0301s", "东京", "a-b"]
RULE = st.sampled_from(["fine", "edges"])


@cache
def tokenizer_of(name: str) -> Any:
    return TOKENIZERS[name]()


def reading(found: Any) -> list[list[int]]:
    """The token that each word is read at, by text, in the order of its windows."""
    tokens: list[list[int]] = [[] for _ in range(len(found.words))]
    for window, owner in enumerate(found.example.tolist()):
        marks = found.reads[window]
        tokens[owner] += found.ids[window][marks == READ].tolist()
    return tokens


@settings(max_examples=120, deadline=None)
@given(NAMES, ODD, RULE)
def test_each_word_is_read_at_a_token_of_its_own(name: str, text: str, rule: Any) -> None:
    tokenizer, words = tokenizer_of(name), words_of(text, rule)
    found = word_tokens([(text, words)], tokenizer, 512)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    (places,) = np.nonzero(found.reads[0] == READ)
    rows = found.words[0]
    assert len(places) == len(rows)
    for place, (start, end, first, stop) in zip(places.tolist(), rows.tolist(), strict=True):
        assert (start, end) == (words[first][0], words[stop - 1][1])
        assert spans[place][0] < end
        assert spans[place][1] > start
    assert np.all(np.diff(places) > 0)
    read = {word for _, _, first, stop in rows.tolist() for word in range(first, stop)}
    for word in set(range(len(words))) - read:  # no token reaches into what is left out
        start, end = words[word]
        inside = [k for k, (a, b) in enumerate(spans) if a < end and b > start and a < b]
        assert not inside or {k for k in inside if k in places.tolist()} == set(inside)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["bert", "roberta"]), st.lists(st.sampled_from(WORDS), min_size=1, max_size=9))
def test_given_words_are_read_where_transformers_reads_them(name: str, tokens: list[str]) -> None:
    tokenizer = tokenizer_of(name)
    theirs = tokenizer(tokens, is_split_into_words=True, return_offsets_mapping=True)
    found = word_tokens([join_words(tokens)], tokenizer, 512)
    assert found.ids[0].tolist() == theirs["input_ids"]
    first: dict[int, int] = {}  # a token of nothing but the blank before a word is not read
    for place, (word, (a, b)) in enumerate(zip(theirs.word_ids(), theirs["offset_mapping"], strict=True)):
        if word is not None and a < b:
            first.setdefault(word, place)
    assert np.flatnonzero(found.reads[0] == READ).tolist() == list(first.values())


@settings(max_examples=100, deadline=None)
@given(NAMES, st.lists(ODD, min_size=1, max_size=6).map(" ".join), RULE, st.integers(10, 24))
def test_windows_read_each_word_once(name: str, text: str, rule: Any, limit: int) -> None:
    tokenizer, words = tokenizer_of(name), words_of(text, rule)
    whole = word_tokens([(text, words)], tokenizer, 10**6)
    found = word_tokens([(text, words)], tokenizer, limit)
    assert found.words.values.tolist() == whole.words.values.tolist()
    assert reading(found) == reading(whole)
    assert max(found.ids.lengths) <= limit
    assert found.lengths.tolist() == whole.lengths.tolist() or not text
    special = tokenizer("", return_special_tokens_mask=True)["input_ids"]
    for window in range(len(found.ids)):
        ids = found.ids[window].tolist()
        assert len(found.reads[window]) == len(ids)
        if special and name != "llama":
            assert (ids[0], ids[-1]) == (special[0], special[-1])


def test_a_word_is_read_away_from_the_edges() -> None:
    text = "ab " * 40
    found = word_tokens([(text, words_of(text))], tokenizer_of("gpt2"), 32)
    for window in range(1, len(found.ids)):
        (places,) = np.nonzero(found.reads[window] == READ)
        assert places[0] >= 3  # an eighth of the window at least, less half a word
    assert len(found.ids) == 5


@settings(max_examples=120, deadline=None)
@given(NAMES, ODD, RULE, st.integers(10, 40), st.data())
def test_predicted_spans_are_exact(name: str, text: str, rule: Any, limit: int, data: Any) -> None:
    """A head that says the right label of every word gives back the characters of the words, whatever the text."""
    task = Entities(bio_labels(["per", "loc"]), rule)
    encoded = task.encode_inputs([text, "paul"], tokenizer_of(name), limit)
    rows = encoded.details.words[0]
    wanted, logits, start = [], [], 0
    while start < len(rows):
        stop = min(len(rows), start + data.draw(st.integers(1, 3)))
        kind = data.draw(st.sampled_from(["per", "loc", None]))
        labels = (
            ["O"] * (stop - start) if kind is None else [f"B-{kind}"] + [f"I-{kind}"] * (stop - start - 1)
        )
        logits += [np.eye(5, dtype=np.float32)[task.labels.index(label)] * 9 for label in labels]
        if kind is not None:
            a, b = int(rows[start, 0]), int(rows[stop - 1, 1])
            wanted.append({"start": a, "end": b, "label": kind, "text": text[a:b]})
        start = stop
    logits += [np.eye(5, dtype=np.float32)[0]] * len(encoded.details.words[1])
    assert isinstance(encoded.targets, Ragged)
    lengths = [int((encoded.targets[m] == READ).sum()) for m in range(len(encoded))]
    outputs = Ragged(np.array(logits, np.float32).reshape(-1, 5), np.cumsum([0, *lengths]))
    answers = task.answers(outputs, encoded)
    found = [{k: v for k, v in entity.items() if k != "score"} for entity in answers[0]["entities"]]
    assert found == wanted
    assert answers[1] == {"entities": []}


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 9, of which special tokens take 2"):
        word_tokens([("a", ((0, 1),))], tokenizer_of("bert"), 9)

    class Slow:
        is_fast = False

    with pytest.raises(BaseError, match="does not say which characters its tokens stand for"):
        word_tokens([("a", ((0, 1),))], Slow(), 64)
