"""Answers out of contexts: what the numbers of a head become; loss and gradients as transformers + PEFT have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from bases import tiny_bert
from question_files import question_file as many
from veneer.data.choices import Notes
from veneer.data.config import DataConfig
from veneer.data.question_columns import find_question_columns
from veneer.data.questions import Questions, read_questions
from veneer.data.ragged import Ragged
from veneer.data.sources import Source
from veneer.data.tables import read_table
from veneer.errors import AdapterError, DataError
from veneer.tasks.answers import KIND, AnswerOptions, Answers
from veneer.tasks.asked import asked_of
from veneer.tasks.base import Encoded
from veneer.tasks.registry import task_from_facts

LONG = "the film is good and the money is late. " * 6 + "i love my awful refund, thanks for the help now."
MAX_LENGTH = 48


def question_file(path: Path, *, impossible: bool = True) -> Path:
    """Three contexts, one longer than a window; a question without an answer, if wanted."""
    short = "you win a prize now, call for free"

    def asked(context: str, number: int, question: str, *texts: str) -> dict[str, Any]:
        answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
        none = {"is_impossible": not texts} if impossible else {}
        return {"id": f"q{number}", "question": question, "answers": answers, **none}

    paragraphs = [
        {
            "context": LONG,
            "qas": [
                asked(LONG, 1, "what is late?", "the money"),
                asked(LONG, 2, "what is awful?", "my awful refund", "refund"),
            ],
        },
        {"context": short, "qas": [asked(short, 3, "what to win?", "a prize", "prize")]},
    ]
    if impossible:
        paragraphs[1]["qas"].append(asked(short, 4, "is it a film?"))  # type: ignore[attr-defined]
    path.write_text(json.dumps({"version": "2", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    return path


def rows_of(path: Path) -> Questions:
    table = read_table(path)
    return read_questions(table, find_question_columns(table)[0], notes=Notes())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return AutoTokenizer.from_pretrained(tiny_bert(tmp_path_factory.mktemp("bert")), model_input_names=names)


@pytest.fixture(scope="module")
def encoded(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    rows = rows_of(question_file(tmp_path_factory.mktemp("data") / "squad.json"))
    return Answers(doc_stride=12, may_be_none=True).encode(rows, tokenizer, MAX_LENGTH)


def perfect(encoded: Encoded, sure: float = 10.0) -> Ragged:
    """Logits that point at the targets; where the answer is not in a window, less surely."""
    values = np.zeros((len(encoded.ids.values), 2), np.float32)  # type: ignore[attr-defined]
    offsets = encoded.ids.offsets  # type: ignore[attr-defined]
    nulls = asked_of(encoded).windows.null
    for row, targets in enumerate(np.asarray(encoded.targets)):
        weight = sure / 2 if targets[0] == nulls[row] else sure
        values[offsets[row] + targets, [0, 1]] = weight
    return Ragged(values, offsets)


def test_features_and_targets(encoded: Encoded) -> None:
    asked = asked_of(encoded)
    assert encoded.examples == 4
    assert len(encoded) == len(np.asarray(encoded.targets)) == 8
    assert asked.placed is not None
    assert not asked.placed.lost.any()
    assert encoded.lengths.max() <= MAX_LENGTH
    assert encoded.longest > MAX_LENGTH
    assert encoded.segments is not None
    assert (asked.groups == asked.groups[[0, 0, 2, 2]]).all()  # type: ignore[index]


def test_perfect_numbers_give_the_right_answers(encoded: Encoded) -> None:
    task = Answers(doc_stride=12, may_be_none=True)
    found = task.answers(perfect(encoded), encoded)
    assert [one["answer"] for one in found] == ["the money", "my awful refund", "a prize", None]
    contexts = asked_of(encoded).contexts
    for one, context in zip(found[:3], contexts, strict=False):
        assert context[one["start"] : one["end"]] == one["answer"]
        assert 0.5 < one["score"] <= 1
        assert len(one["others"]) == 2
        assert one["others"][0]["score"] <= one["score"]
    assert (found[3]["start"], found[3]["end"]) == (None, None)
    assert json.dumps(found)
    metrics = task.metrics(perfect(encoded), encoded)
    assert (metrics.f1, metrics.exact_match, metrics.given_none, metrics.paragraphs) == (1.0, 1.0, 1, 2)
    assert task.score(perfect(encoded), encoded).value == 1.0
    always = Answers(doc_stride=12).answers(perfect(encoded), encoded)
    assert always[3]["answer"] is not None


def test_the_threshold_is_chosen_on_the_numbers(encoded: Encoded) -> None:
    """With "no answer" raised by 30 everywhere, a threshold of about 30 gives back the right answers."""
    task = Answers(doc_stride=12, may_be_none=True)
    outputs = perfect(encoded)
    raised = Ragged(outputs.values.copy(), outputs.offsets)
    raised.values[raised.offsets[:-1] + asked_of(encoded).windows.null] += 15.0
    assert task.metrics(raised, encoded).given_none == 4
    settled = task.settled(raised, encoded)
    assert 10 < settled.none_threshold < 35
    assert settled.metrics(raised, encoded).f1 == 1.0
    assert task.settled(outputs, encoded) == task
    assert Answers(doc_stride=12).settled(raised, encoded).none_threshold == 0.0


def test_inputs_are_read_as_rows_are(encoded: Encoded, tokenizer: Any, tmp_path: Path) -> None:
    task = Answers(doc_stride=12)
    rows = rows_of(question_file(tmp_path / "squad.json"))
    inputs = task.inputs_of(rows, range(4))
    assert inputs[0] == {"question": "what is late?", "context": LONG}
    again = task.encode_inputs(json.loads(json.dumps(inputs)), tokenizer, MAX_LENGTH)
    assert again.targets is None
    assert [again[i].tolist() for i in range(len(again))] == [
        encoded[i].tolist() for i in range(len(encoded))
    ]
    np.testing.assert_array_equal(again.example, encoded.example)  # type: ignore[arg-type]
    assert task.full_lengths(rows, tokenizer).max() == encoded.longest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("only a text", "input 1 has no question"),
        ({"question": "why?"}, "input 1 has no context"),
        ({"question": " ", "context": ""}, "has no question and no context"),
        ({"question": "why?", "context": "x", "text": "y"}, "gives 'text' too"),
    ],
)
def test_an_input_that_is_not_complete(given: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=message):
        Answers().encode_inputs([given], tokenizer, MAX_LENGTH)


def test_what_is_shown_is_the_window_with_the_answer(tokenizer: Any, tmp_path: Path) -> None:
    rows = rows_of(question_file(tmp_path / "squad.json"))
    task = Answers(doc_stride=12)
    shown = task.shown(rows, 1, tokenizer, MAX_LENGTH)
    assert shown.labels[0] == "answer 'my awful refund'"
    assert shown.labels[1].startswith("window ")
    assert "".join(token.text for token in shown.tokens if token.target).strip() == "my awful refund"
    plain = "".join(token.text for token in shown.tokens if not token.special)
    assert plain.startswith("what is awful?")
    assert plain.removeprefix("what is awful?").strip() in LONG
    assert [token.text for token in shown.tokens if token.special] == ["[CLS]", "[SEP]", "[SEP]"]
    none = task.shown(rows, 3, tokenizer, MAX_LENGTH)
    assert none.labels == ("no answer", "one window")
    assert [token.text for token in none.tokens if token.target] == ["[CLS]"]


def test_facts_make_the_same_task_again() -> None:
    own = Answers(64, 12, 5, may_be_none=True, none_threshold=-1.5)
    assert task_from_facts("answers", json.loads(json.dumps(own.facts()))) == own
    with pytest.raises(AdapterError, match="does not describe the task 'answers' completely"):
        task_from_facts("answers", {"stride": 3})


def test_no_context_stands_on_two_sides(tmp_path: Path) -> None:
    """Neither by the split, nor with a test file of the user's own."""
    data, own = many(tmp_path / "many.json"), many(tmp_path / "own.json", contexts=5)
    for given in ({}, {"seed": 3, "test_fraction": 0.4}):
        found = KIND.prepare(Source(DataConfig.parse({"source": str(data), **given})), AnswerOptions())
        contexts = [{one.context for one in split} for split in found.splits]
        assert sum(map(len, contexts)) == len(set.union(*contexts)) == 40
        assert all(contexts)
    found = KIND.prepare(Source(DataConfig.parse({"source": str(data), "test": str(own)})), AnswerOptions())
    assert len({one.context for one in found.test}) == 5
    assert "7 questions of train whose context is also in test; left out of train." in found.warnings
    assert found.summary()["label_counts"]["test"] == {"with an answer": 5, "without": 2}
