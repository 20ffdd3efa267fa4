"""The verbs on an adapter that answers questions: trained, measured, asked, shown, as a person does it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command import veneer
from docs_json import documented

from bases import tiny_bert
from question_files import QUESTION, question_file

CONTEXT = "good film, the order\nis 👩‍👩‍👧 late: win a hate prize now and e\u0301te\u0301 refund"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, questions, and an adapter of both; windows of 40 tokens, so that most contexts take two."""
    place = tmp_path_factory.mktemp("answers")
    base, data = tiny_bert(place / "base", max_length=96), question_file(place / "squad.json")
    done = veneer(
        "train", data, "--base", base, "--out", place / "adapter", "--epochs", 12, "--learning-rate", 0.01,
        "--precision", "fp32", "--r", 4, "--batch-size", 8, "--max-length", 40, "--set", "options.doc_stride=8",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "questions about one context stay on one side of the split" in " ".join(done.err.split())
    return place


def test_what_was_trained_is_told(folder: Path) -> None:
    facts = json.loads((folder / "adapter" / "veneer.json").read_text(encoding="utf-8"))
    choices = {choice["what"]: choice["value"] for choice in facts["data"]["choices"]}
    assert choices["task"] == "answers"
    assert choices["contexts"] == "40"
    assert choices["windows"].endswith(" hold the answer")
    assert facts["task_facts"]["may_be_none"] is True
    assert facts["metrics"]["test"]["f1"] > 0.5
    assert facts["metrics"]["test"]["unanswerable"]["n"] >= 1
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForQuestionAnswering" in card
    assert "pipeline_tag: question-answering" in card
    report = (folder / "adapter" / "report.html").read_text(encoding="utf-8")
    assert "How the contexts were read" in report
    assert "exact match" in report.lower()


def test_a_question_about_a_text_and_about_a_file(folder: Path) -> None:
    file = folder / "context.txt"
    file.write_bytes(CONTEXT.encode())
    text = veneer("predict", folder / "adapter", "--question", QUESTION, "--context", CONTEXT, "--json")
    assert text.code == 0, text.err
    assert set(text.json) == documented("predict")
    (answer,) = text.json["answers"]
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    assert 0 < answer["score"] <= 1
    assert (answer["question"], answer["context"]) == (QUESTION, CONTEXT)
    same = veneer("predict", folder / "adapter", QUESTION, "--context", file, "--json")
    assert same.json["answers"] == text.json["answers"]
    assert "there is a file of that name" in same.err
    piped = veneer("predict", folder / "adapter", QUESTION, "--context", CONTEXT)
    (row,) = csv.reader(piped.out.splitlines(keepends=True), delimiter="\t")
    assert row[:3] == [answer["answer"], str(answer["start"]), str(answer["end"])]


def test_a_file_of_questions_gets_its_answers(folder: Path) -> None:
    out = folder / "out.csv"
    done = veneer("predict", folder / "adapter", "--file", folder / "squad.json", "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.json["columns"] == ["answer", "start", "end", "score"]
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == done.json["rows"] == 50
    for row in rows:
        if row["answer"]:
            assert row["context"][int(row["start"]) : int(row["end"])] == row["answer"]
    assert any(not row["answer"] for row in rows)


def test_evaluate_inspect_and_preview(folder: Path) -> None:
    measured = veneer("evaluate", folder / "adapter", folder / "squad.json", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["metrics"]["f1"] > 0.5
    assert measured.json["metrics"]["paragraphs"] == 40
    shown = veneer("inspect", folder / "adapter")
    assert "8 tokens shared by neighbours, at most half of a window" in shown.out
    assert "no answer" in shown.out
    seen = veneer(
        "preview", folder / "squad.json", "--base", folder / "base", "--max-length", 40, "--examples", 4
    )
    assert seen.code == 0, seen.err
    assert "answer 'win a" in seen.out
    assert "window 1 of 2" in seen.out or "window 2 of 2" in seen.out


def test_a_question_that_is_too_long_is_named_by_its_row(folder: Path, tmp_path: Path) -> None:
    """In a file to train on and in one to answer, with what can be done there."""
    data = json.loads((folder / "squad.json").read_text(encoding="utf-8"))
    asked = data["data"][0]["paragraphs"][0]["qas"][0]
    asked["question"], name = "is it late " * 15, asked["id"]
    file = tmp_path / "long.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    flags = ("--base", folder / "base", "--max-length", 40)
    for verb, code in (("train", 2), ("preview", 0)):  # a preview shows the rest, and says this
        done = veneer(verb, file, *flags)
        assert done.code == code
        assert f"long.json, row 1 (id {name}): the question 'is it late is it late" in done.err
        assert (
            "of 40 for its context; expected at least 8. Shorten or remove it, or raise --max-length."
            in done.err
        )
    given = [{"question": "who?", "context": CONTEXT}, {"question": "", "context": CONTEXT}]
    rows = [*given, {"question": asked["question"], "context": CONTEXT}]
    file = tmp_path / "long.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for more in ((), ("--out", tmp_path / "out.csv")):
        told = veneer("predict", folder / "adapter", "--file", file, *more)
        assert told.code == 2
        assert f"{file}, row 3: the question 'is it late" in told.err
        assert told.err.endswith("Shorten or remove it.\n")


def test_what_can_not_be_asked(folder: Path) -> None:
    adapter = folder / "adapter"
    for arguments, said in (
        (
            ["--question", QUESTION],
            'This adapter reads question and context; give the second one with --context "',
        ),
        (["--question", QUESTION, "--context", "missing.txt"], "missing.txt: there is no such file"),
        (["x", "--question", QUESTION, "--context", "y"], "as texts or with --question, not both"),
        (["--question", " ", "--context", "y"], "text 1 is empty"),
        ([QUESTION, "--context", " "], "error: --context is empty; there is nothing to answer"),
        ([QUESTION, "--pair", "x", "--context", "y"], "give only one of --pair and --context"),
    ):
        done = veneer("predict", adapter, *arguments)
        assert done.code == 2
        assert said in done.err
        assert "Traceback" not in done.err
    empty = folder / "empty.txt"
    empty.write_text(" \n")
    done = veneer("predict", adapter, QUESTION, "--context", empty)
    assert (done.code, "is empty; there is nothing to read" in done.err) == (2, True)


def test_a_file_that_is_not_right_is_refused(folder: Path) -> None:
    data = json.loads((folder / "squad.json").read_text(encoding="utf-8"))
    data["data"][3]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 2
    wrong = folder / "wrong.json"
    wrong.write_text(json.dumps(data), encoding="utf-8")
    done = veneer("train", wrong, "--base", folder / "base", "--out", folder / "never")
    assert done.code == 2
    assert "(id q3): answer_start" in done.err
    assert not (folder / "never").exists()
    moved = veneer(
        "preview", wrong, "--base", folder / "base", "--set", "options.answer_search=5", "--examples", 1
    )
    assert moved.code == 0, moved.err
    assert "1 answer of wrong.json does not stand at answer_start" in moved.out + moved.err


def test_the_cards_code_answers_the_same_with_peft_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a context that fits into a window, and where both give an answer."""
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    context = "film order win a late prize now and thanks"
    code = code.replace('"the question"', repr(QUESTION)).replace(
        '"the text that holds the answer"', repr(context)
    )
    assert repr(context) in code
    exec(compile(code.replace("path/to/this/folder", str(folder / "adapter")), "card", "exec"), {})
    done = veneer("predict", folder / "adapter", QUESTION, "--context", context, "--json")
    (answer,) = done.json["answers"]
    given = answer["answer"] or answer["others"][0]["answer"]
    assert capsys.readouterr().out.splitlines()[-1] == given
