"""Windows against the tokenizers' own places, and the best spans against a plain search over all of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bases import tiny_bert, tiny_gpt2
from veneer.data.characters import whole_characters
from veneer.data.ragged import Ragged
from veneer.errors import BaseError, DataError
from veneer.tasks.best_spans import best_spans
from veneer.tasks.windows import LEAST_ROOM, Windows, full_lengths, place_answers, split_windows

CONTEXT = "my prize is 😀👩‍👩‍👧, e\u0301te\u0301 and the money  is late; call now for free help and thanks"


def byte_level() -> PreTrainedTokenizerFast:
    """RoBERTa's form: bytes, <s> question </s></s> context </s>, no token types, blanks not part of a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


@pytest.fixture(scope="module", params=["bert", "gpt2", "roberta"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One of three forms of a pair."""
    if request.param == "roberta":
        return byte_level()
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        return AutoTokenizer.from_pretrained(tiny_gpt2(folder))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return AutoTokenizer.from_pretrained(tiny_bert(folder), model_input_names=names)


def windows_of(tokenizer: Any, context: str, max_length: int = 40, stride: int = 8) -> Windows:
    return split_windows([[("is it late", context)]], tokenizer, max_length, stride)


def test_a_context_that_fits_is_the_tokenizers_own_pair(tokenizer: Any) -> None:
    found = split_windows([[("is it late", "call now"), ("why", "the money")]], tokenizer, 60, 8)
    expected = tokenizer(["is it late", "why"], ["call now", "the money"])
    assert [ids.tolist() for ids in (found.ids[0], found.ids[1])] == expected["input_ids"]
    if "token_type_ids" in expected:
        assert found.segments is not None
        assert [found.segments[0].tolist(), found.segments[1].tolist()] == expected["token_type_ids"]
    else:
        assert found.segments is None
    assert found.example.tolist() == [0, 1]
    assert found.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    pairs = [[("is it late", "call now")], [("why", "the money")]]
    assert full_lengths(pairs, tokenizer).tolist() == found.lengths.tolist()


@given(st.text(st.sampled_from("ab é\u0301😀👩‍👧 \n.,"), max_size=60), st.integers(0, 30))
@settings(deadline=None, max_examples=25)
def test_windows_overlap_and_leave_nothing_out(tokenizer: Any, context: str, stride: int) -> None:
    found = windows_of(tokenizer, context, stride=stride)
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    asked = tokenizer("is it late", add_special_tokens=False)["input_ids"]
    room = 40 - len(asked) - tokenizer.num_special_tokens_to_add(pair=True)
    overlap = min(stride, room // 2)
    pieces = [
        found.ids[i][found.begin[i] :][: len(found.spans[i])].tolist() for i in range(len(found))
    ]  # the context's tokens
    together = pieces[0] + [token for piece in pieces[1:] for token in piece[overlap:]]
    assert together == whole["input_ids"]
    assert all(before[-overlap:] == after[:overlap] for before, after in pairwise(pieces) if overlap)
    assert found.ids.lengths.max() <= 40
    spans = [found.spans[0], *(found.spans[i][overlap:] for i in range(1, len(found)))]
    found_spans = [tuple(span) for piece in spans for span in piece.tolist()]
    for mine, theirs in zip(found_spans, whole["offset_mapping"], strict=True):
        assert mine == theirs or (
            mine[0] == mine[1] and theirs[0] == theirs[1]
        )  # a trimmed blank: no character


@given(st.integers(0, len(CONTEXT) - 1), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_the_tokens_of_an_answer_hold_its_characters(tokenizer: Any, start: int, length: int) -> None:
    """And no token more: the ones at its ends overlap with it, as the tokenizers' own char_to_token says."""
    end = min(start + length, len(CONTEXT))
    if not CONTEXT[start:end].strip():
        return
    start += len(CONTEXT[start:end]) - len(CONTEXT[start:end].lstrip())
    start, end = whole_characters(CONTEXT, start, start + len(CONTEXT[start:end].rstrip()))
    found = windows_of(tokenizer, CONTEXT)
    placed = place_answers(found, [(start, end)], [len(CONTEXT)])
    whole = tokenizer(CONTEXT, add_special_tokens=False)
    expected = [token for i in range(start, end) if (token := whole.char_to_token(0, i)) is not None]
    held = np.flatnonzero(placed.targets[:, 0] != found.null)
    if not expected:  # characters that the tokenizer drops
        assert placed.lost.tolist() == [True]
        return
    assert placed.lost.tolist() == [not len(held)]
    assert placed.with_answer == len(held)
    for i in held:
        first, last = placed.targets[i] - found.begin[i]
        low, high = int(found.spans[i][first, 0]), int(found.spans[i][last, 1])
        assert (low, high) == (whole.token_to_chars(expected[0])[0], whole.token_to_chars(expected[-1])[1])
        if placed.widened == 0:
            low, high = whole_characters(CONTEXT, low, high)
            assert CONTEXT[start:end] in CONTEXT[low:high]
    for i in set(range(len(found))) - set(held.tolist()):
        assert placed.targets[i].tolist() == [found.null[i]] * 2


def test_windows_without_the_answer_point_at_the_first_token(tokenizer: Any) -> None:
    found = windows_of(tokenizer, "free " * 200)
    assert len(found) > 3
    placed = place_answers(found, [(0, 4)], [1000])
    assert placed.targets[1:].tolist() == [[0, 0]] * (len(found) - 1)
    assert placed.targets[0].tolist() != [0, 0]
    nothing = place_answers(found, [None], [1000])
    assert (nothing.with_answer, nothing.lost.tolist()) == (0, [False])
    assert (nothing.targets == 0).all()
    assert place_answers(found, [(0, 1000)], [1000]).lost.tolist() == [True]  # longer than a window


def test_an_answer_inside_of_a_token_is_counted(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert(tmp_path))
    found = windows_of(tokenizer, "the refund is late")
    assert place_answers(found, [(4, 6)], [18]).widened == 1
    assert place_answers(found, [(4, 10)], [18]).widened == 0


def test_what_can_not_be_read(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=rf"leaves \d+ of 40 for its context; expected at least {LEAST_ROOM}"):
        split_windows([[("is it late " * 12, "the money " * 9)]], tokenizer, 40, 8)
    short = split_windows([[("i" * 34 if tokenizer.cls_token is None else "a " * 14, "a")]], tokenizer, 40, 8)
    assert len(short) == 1  # what fits whole needs no room
    with pytest.raises(BaseError, match="does not say which characters"):
        split_windows([[("a", "b")]], object(), 40, 8)


def brute(logits: Any, spans: Any, text: str, begin: int, longest: int) -> dict[Any, float]:
    """Every span of a window, one after the other."""
    found: dict[Any, float] = {}
    for first in range(len(spans)):
        for last in range(first, min(first + longest, len(spans))):
            start, end = int(spans[first, 0]), int(spans[last, 1])
            while start < end and text[start].isspace():
                start += 1
            while start < end and text[end - 1].isspace():
                end -= 1
            score = float(logits[begin + first, 0]) + float(logits[begin + last, 1])
            if start < end:
                start, end = whole_characters(text, start, end)
                found[start, end] = max(score, found.get((start, end), -np.inf))
    return found


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_the_best_spans_are_the_best_of_all(tokenizer: Any, seed: int, longest: int, n_best: int) -> None:
    found = windows_of(tokenizer, CONTEXT)
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(len(found.ids.values), 2)).astype(np.float32)
    logits = Ragged(values, found.ids.offsets)
    mine = best_spans(logits, found, [CONTEXT], longest=longest, n_best=n_best)[0]
    every: dict[Any, float] = {}
    for i in range(len(found)):
        for span, score in brute(logits[i], found.spans[i], CONTEXT, int(found.begin[i]), longest).items():
            every[span] = max(score, every.get(span, -np.inf))
    expected = sorted(every.values(), reverse=True)[: len(mine.spans)]
    np.testing.assert_allclose([one.score for one in mine.spans], expected, atol=1e-6)
    assert mine.spans[0].score == pytest.approx(every[mine.spans[0].start, mine.spans[0].end], abs=1e-6)
    none = min(float(logits[i][found.null[i]].astype(np.float64).sum()) for i in range(len(found)))
    assert mine.none == pytest.approx(none, abs=1e-6)
    assert mine.margin == pytest.approx(none - expected[0], abs=1e-6)


def test_a_context_of_blanks_has_no_span(tokenizer: Any) -> None:
    found = windows_of(tokenizer, "  \n ")
    logits = Ragged(np.zeros((len(found.ids.values), 2), np.float32), found.ids.offsets)
    mine = best_spans(logits, found, ["  \n "], longest=5, n_best=3)[0]
    assert (mine.spans, mine.margin) == ((), np.inf)
