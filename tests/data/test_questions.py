"""SQuAD's files, nested and flat: the same questions, exact places, and an error for every row that is not right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import write_csv

from veneer.data.choices import Notes
from veneer.data.question_columns import find_question_columns, looks_like_questions
from veneer.data.questions import Questions, read_questions
from veneer.data.squad import GoldAnswer, parse_answers
from veneer.data.tables import read_table
from veneer.errors import DataError

CONTEXT = "Ann has 3 cats 🐈‍⬛ and Béla has none."
QAS: list[dict[str, Any]] = [
    {"id": "q1", "question": "Who has cats?", "answers": [{"text": "Ann", "answer_start": 0}]},
    {
        "id": "q2",
        "question": "Who has none?",
        "answers": [
            {"text": "Béla", "answer_start": CONTEXT.index("Béla")},
            {"text": "Béla has none", "answer_start": CONTEXT.index("Béla")},
        ],
    },
]


def nested(path: Path, qas: Sequence[Mapping[str, Any]] = QAS, context: str = CONTEXT) -> Path:
    """A file as SQuAD publishes it."""
    articles = [{"title": "Cats", "paragraphs": [{"context": context, "qas": qas}]}]
    path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    return path


def read(path: Path, *, notes: Notes | None = None, **options: Any) -> Questions:
    """The questions of a file, columns found by name."""
    table = read_table(path)
    columns, _ = find_question_columns(table)
    return read_questions(table, columns, notes=notes or Notes(), **options)


def test_the_nested_file(tmp_path: Path) -> None:
    found = list(read(nested(tmp_path / "squad.json")))
    assert [one.id for one in found] == ["q1", "q2"]
    assert {one.context for one in found} == {CONTEXT}
    assert found[0].answers == (GoldAnswer("Ann", 0),)
    assert [gold.text for gold in found[1].answers] == ["Béla", "Béla has none"]
    for gold in found[1].answers:
        assert CONTEXT[gold.start : gold.end] == gold.text


def flat(kind: str, folder: Path) -> Path:
    """The same questions as rows."""
    rows = [{"context": CONTEXT, "title": "Cats", **one} for one in QAS]
    hub = [
        {
            **row,
            "answers": {
                "text": [a["text"] for a in row["answers"]],
                "answer_start": [a["answer_start"] for a in row["answers"]],
            },
        }
        for row in rows
    ]
    if kind == "jsonl":
        path = folder / "flat.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in hub), encoding="utf-8")
    elif kind == "parquet":
        path = folder / "flat.parquet"
        pq.write_table(pa.Table.from_pylist(hub), path)
    elif kind == "csv":
        columns = {name: [row[name] for row in rows] for name in ("id", "context", "question")}
        path = write_csv(
            folder / "flat.csv", columns | {"answers": [json.dumps(row["answers"]) for row in rows]}
        )
    else:  # one answer a row, in two columns
        columns = {name: [row[name] for row in rows] for name in ("id", "context", "question")}
        firsts = [row["answers"][0] for row in rows]
        path = write_csv(
            folder / "plain.csv",
            columns
            | {"answer": [a["text"] for a in firsts], "answer_start": [a["answer_start"] for a in firsts]},
        )
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "plain"])
def test_flat_files_hold_the_same(kind: str, tmp_path: Path) -> None:
    found, expected = list(read(flat(kind, tmp_path))), list(read(nested(tmp_path / "squad.json")))
    for mine, theirs in zip(found, expected, strict=True):
        gold = theirs.answers[:1] if kind == "plain" else theirs.answers
        assert (mine.id, mine.question, mine.context, mine.answers) == (
            theirs.id, theirs.question, theirs.context, gold,
        )  # fmt: skip


def test_squad_2_says_so_where_there_is_no_answer(tmp_path: Path) -> None:
    none = {"id": "q3", "question": "Who has dogs?", "answers": [], "is_impossible": True}
    notes = Notes()
    found = read(nested(tmp_path / "squad.json", [{**QAS[0], "is_impossible": False}, none]), notes=notes)
    assert [len(one.answers) for one in found] == [1, 0]
    assert (found.impossible, notes.counts["without_answer"]) == (1, 1)
    hub = {**none, "context": CONTEXT, "answers": {"text": [], "answer_start": []}}
    del hub["is_impossible"]
    path = tmp_path / "hub.jsonl"
    path.write_text(json.dumps(hub) + "\n", encoding="utf-8")
    assert read(path).impossible == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"answers": []}, r"row 1 \(id q1\): it has no answers.*is_impossible: true"),
        ({"answers": [], "is_impossible": False}, "it has no answers"),
        ({"answers": None}, "it has no answers"),
        ({"is_impossible": True}, "is_impossible is true, and there is an answer .'Ann'.; mend one"),
        ({"is_impossible": "maybe"}, "is_impossible is 'maybe'; expected true or false"),
        ({"answers": [{"text": "Ann", "answer_start": 4}]}, "points at 'has', not at 'Ann'; it stands at 0"),
        ({"answers": [{"text": "Eve", "answer_start": 0}]}, "not at 'Eve'; the context does not hold it"),
        (
            {"answers": [{"text": "Ann", "answer_start": -1}]},
            "answer_start of 'Ann' is -1; expected a number",
        ),
        ({"answers": [{"text": "Ann", "answer_start": 999}]}, "points at '', not at 'Ann'"),
        ({"answers": [{"text": "Ann"}]}, "expected its text and answer_start"),
        ({"answers": [{"text": " ", "answer_start": 3}]}, "an answer's text is .*; expected words"),
        ({"answers": {"text": ["Ann"], "answer_start": []}}, "1 answers with 0 answer_start"),
        ({"answers": 5}, "not of the form"),
        ({"answers": "{'text': ['Ann']}"}, "are not JSON; expected"),
    ],
)
def test_a_row_that_is_not_right_is_named(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(nested(tmp_path / "squad.json", [{**QAS[0], **asked}]))


def test_all_faults_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    wrong = {**QAS[0], "answers": [{"text": "Ann", "answer_start": 1}]}
    with pytest.raises(DataError, match=r"row 1 .*row 2 .*row 5 .*and 4 more rows.*answer_search=N"):
        read(nested(tmp_path / "squad.json", [wrong] * 9))


def test_what_is_not_of_places_is_not_mended_by_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SQuAD 2 has it\)\. Mend the rows\.$"):
        read(nested(tmp_path / "squad.json", [{**QAS[0], "answers": []}]))


def test_an_answer_nearby_is_found_where_that_is_asked_for(tmp_path: Path) -> None:
    context = "Ann and Ann and Ann"
    path = nested(
        tmp_path / "squad.json", [{**QAS[0], "answers": [{"text": "Ann", "answer_start": 9}]}], context
    )
    notes = Notes()
    assert read(path, search=1, notes=notes)[0].answers == (GoldAnswer("Ann", 8),)
    assert notes.counts["moved_answers"] == 1
    assert "1 answer of squad.json does not stand at answer_start; found within 1" in notes.warnings[0]
    far = nested(
        tmp_path / "far.json", [{**QAS[0], "answers": [{"text": "Ann", "answer_start": 4}]}], context
    )
    with pytest.raises(DataError, match="points at 'and'"):
        read(far, search=3)


def test_empty_questions_and_contexts_are_counted_or_refused(tmp_path: Path) -> None:
    path = nested(tmp_path / "squad.json", [*QAS, {**QAS[0], "question": "  "}])
    notes = Notes()
    assert len(read(path, notes=notes)) == 2
    assert (notes.counts["empty_texts"], notes.counts["rows"]) == (1, 3)
    with pytest.raises(DataError, match=r"row 3 \(id q1\): the question is empty"):
        read(path, on_empty_text="error")
    unanswered = nested(tmp_path / "none.json", [*QAS, {**QAS[0], "answers": []}])
    assert len(read(unanswered, on_missing_label="drop", notes=notes)) == 2
    assert notes.counts["missing_labels"] == 1


def test_an_article_that_is_not_complete_is_named(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    for article, message in (
        ({"paragraphs": [{"qas": []}]}, "article 2, paragraph 1: expected a text under 'context'"),
        ({"paragraphs": [{"context": "x"}]}, "article 2, paragraph 1: expected a list under 'qas'"),
        ({"title": "x"}, "article 2: expected a list under 'paragraphs'"),
        (
            {"paragraphs": [{"context": "x", "qas": [{"id": 1}]}]},
            "paragraph 1, question 1: expected a text under 'question'",
        ),
    ):
        path.write_text(json.dumps({"data": [{"paragraphs": []}, article]}), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_table(path)


def test_columns_by_name_and_as_named(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "x.csv", {"body": [CONTEXT], "Question": ["Who?"], "answer": ["Ann"], "answer_start": [0]}
    )
    table = read_table(path)
    with pytest.raises(
        DataError, match=r"no column that is the context .*Say which with columns={'context': 'NAME'}"
    ):
        find_question_columns(table)
    with pytest.raises(DataError, match=r"has no column 'bdy'.*Did you mean 'body'"):
        find_question_columns(table, {"context": "bdy"})
    with pytest.raises(DataError, match=r"no column is read as 'contxt'\. Did you mean 'context'"):
        find_question_columns(table, {"contxt": "body"})
    columns, choice = find_question_columns(table, {"context": "body"})
    assert (columns.question, columns.answers, columns.start) == ("Question", "answer", "answer_start")
    assert "context 'body'" in choice.value
    assert looks_like_questions(("id", "Context", "question", "answers"))
    assert not looks_like_questions(("question", "answers"))


def test_contexts_have_one_print_and_a_selection_keeps_its_rows(tmp_path: Path) -> None:
    found = read(nested(tmp_path / "squad.json"))
    assert (found.prints[0] == found.prints[1]).all()
    one = found.select(np.array([1]), "test")
    assert (one.name, one.rows.tolist(), one[0].id, len(one.prints)) == ("test", [1], "q2", 1)


TEXTS = st.text(st.sampled_from("ab é\u0301👩‍👩‍👧\n"), min_size=1, max_size=20)


@given(TEXTS, st.integers(0, 19), st.integers(1, 20))
@settings(deadline=None)
def test_any_marked_span_is_read_as_it_was_marked(context: str, start: int, length: int) -> None:
    text = context[start : start + length]
    if not text.strip():
        return
    for cell in ([{"text": text, "answer_start": start}], {"text": [text], "answer_start": [start]}):
        assert parse_answers(json.dumps(cell)) == (GoldAnswer(text, start),)


def test_xquad(shared_data: Path) -> None:
    found = read(shared_data / "xquad" / "xquad.en.json")
    assert (len(found), found.impossible) == (1190, 0)
    assert len(np.unique(found.prints, axis=0)) == 240
