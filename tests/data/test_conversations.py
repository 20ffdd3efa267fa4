"""Reading of what a model is asked and what it should answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veneer.data.choices import Notes
from veneer.data.conversation_columns import choose_conversation_columns, conversation_form
from veneer.data.conversations import Conversations, Turn, read_conversations
from veneer.data.documents import read_documents
from veneer.data.tables import read_table
from veneer.errors import ConfigError, DataError


def _read(
    path: Path, notes: Notes | None = None, given: dict[str, str] | None = None, **options: Any
) -> Conversations:
    table = read_table(path)
    columns, _ = choose_conversation_columns(str(path), table.columns, table.kinds, given or {})
    return read_conversations(table, columns, notes=notes or Notes(), **options)


def _json(folder: Path, records: list[dict[str, Any]], lines: bool = False) -> Path:
    path = folder / ("rows.jsonl" if lines else "rows.json")
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    return path


def test_alpaca(tmp_path: Path) -> None:
    records = [
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
        {"instruction": "Correct it.", "input": "He go.", "output": "He goes."},
    ]
    rows = _read(_json(tmp_path, records))
    assert rows.columns.form == "instruction"
    assert [one.turns for one in rows] == [
        (Turn("user", "Name a colour."), Turn("assistant", "Red.")),
        (Turn("user", "Correct it.", "He go."), Turn("assistant", "He goes.")),
    ]
    assert rows[1].answer == "He goes."


def test_prompt_and_completion_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"2 + 2 =","4"\n"a, b","c\nd"\n', encoding="utf-8")
    rows = _read(path)
    assert rows.columns.form == "prompt"
    assert rows[1].turns == (Turn("user", "a, b"), Turn("assistant", "c\nd"))


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]


def test_messages_json_lines_sharegpt_and_parts(tmp_path: Path) -> None:
    share = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, MESSAGES[2]]
    for name, value in (("messages", MESSAGES), ("conversations", share), ("messages", parts)):
        rows = _read(_json(tmp_path, [{name: value}], lines=True))
        assert rows.columns.form == "messages"
        assert rows[0].turns[-2:] == (Turn("user", "Hi"), Turn("assistant", "Hello"))


def test_messages_from_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": [MESSAGES, MESSAGES[1:]]}), path)
    rows = _read(path)
    assert len(rows) == 2
    assert rows[0].turns[0] == Turn("system", "Be short.")


def test_prompt_and_completion_as_messages(tmp_path: Path) -> None:
    rows = _read(_json(tmp_path, [{"prompt": MESSAGES[:2], "completion": MESSAGES[2:]}]))
    assert [turn.role for turn in rows[0].turns] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("one\ntwo\n\n\nthree\n", "auto", ["one\ntwo", "three"]),
        ("one\ntwo\n", "auto", ["one", "two"]),
        ("one\n\ntwo\n", "file", ["one\n\ntwo"]),
        ("one\n\ntwo\n", "lines", ["one", "two"]),
    ],
)
def test_documents(tmp_path: Path, text: str, how: Any, expected: list[str]) -> None:
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    table = read_documents(path, how)
    columns, _ = choose_conversation_columns("book", table.columns, table.kinds, {})
    rows = read_conversations(table, columns, notes=Notes())
    assert [one.text for one in rows] == expected
    assert table.choices[-1].value.startswith(str(len(expected)))


@pytest.mark.parametrize(
    ("columns", "kinds", "form"),
    [
        (("instruction", "input", "output"), {}, "instruction"),
        (("Instruction", "Response"), {}, "instruction"),
        (("prompt", "completion"), {}, "prompt"),
        (("messages",), {"messages": "list"}, "messages"),
        (("messages", "label"), {"messages": "text"}, None),
        (("text", "label"), {}, None),
        (("question", "answer"), {}, None),
        (("text",), {}, None),
    ],
)
def test_what_shows_without_doubt(columns: tuple[str, ...], kinds: dict[str, str], form: str | None) -> None:
    assert conversation_form(columns, kinds) == form


def test_columns_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("frage,antwort,rest\nA?,B,x\n", encoding="utf-8")
    rows = _read(path, given={"prompt": "frage", "completion": "antwort"})
    assert rows[0].turns == (Turn("user", "A?"), Turn("assistant", "B"))
    with pytest.raises(DataError, match=r"frage, antwort, rest; expected instruction and output"):
        _read(path)
    with pytest.raises(DataError, match=r"no column 'fragen' .*Did you mean 'frage'"):
        _read(path, given={"prompt": "fragen"})
    with pytest.raises(ConfigError, match=r"'promt' is no role.*Did you mean 'prompt'"):
        _read(path, given={"promt": "frage"})
    with pytest.raises(DataError, match=r"named as completion is .*columns={'completion': 'NAME'}"):
        _read(path, given={"prompt": "frage"})


def test_rows_without_answers_are_errors_or_left_out(tmp_path: Path) -> None:
    path = _json(tmp_path, [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": " "}])
    with pytest.raises(DataError, match=r"1 row without an answer \(row 2, .*on_missing_label=drop"):
        _read(path)
    notes = Notes()
    rows = _read(path, notes, on_missing_label="drop")
    assert len(rows) == 1
    assert notes.counts == {"rows": 2, "empty_texts": 0, "missing_labels": 1}


def test_rows_without_a_question_are_left_out(tmp_path: Path) -> None:
    path = _json(
        tmp_path,
        [{"instruction": "", "input": "", "output": "b"}, {"instruction": "", "input": "x", "output": "y"}],
    )
    notes = Notes()
    rows = _read(path, notes)
    assert rows.rows.tolist() == [1]
    assert notes.counts["empty_texts"] == 1
    with pytest.raises(DataError, match=r"1 row without a text \(row 1"):
        _read(path, on_empty_text="error")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (
            [{"role": "usr", "content": "x"}],
            "message 1 has the role 'usr'; expected system, user or assistant",
        ),
        ([{"role": "user", "content": None}], "message 1 has the content None"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 holds something else than text"),
        (["x"], "message 1 is str, expected an object"),
        ([*MESSAGES, MESSAGES[0]], "message 4 is of the system"),
        ([MESSAGES[1], MESSAGES[2], MESSAGES[2]], "messages 2 and 3 are both answers"),
    ],
)
def test_faulty_messages_name_their_row(tmp_path: Path, messages: list[Any], says: str) -> None:
    path = _json(tmp_path, [{"messages": MESSAGES}, {"messages": messages}])
    with pytest.raises(DataError, match=f"1 row can't be read .*row 2: {says}"):
        _read(path)


def test_messages_that_are_no_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("messages,x\nhello there,1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1: messages are no JSON list: 'hello there'"):
        _read(path, given={"messages": "messages"})


def test_equal_examples_have_equal_prints(tmp_path: Path) -> None:
    one = {"instruction": "a", "input": "b", "output": "c"}
    rows = _read(_json(tmp_path, [one, {**one, "output": "d"}, {**one, "output": "c "}]))
    assert (rows.prints[0] == rows.prints[2]).all()
    assert (rows.prints[0] != rows.prints[1]).any()
    part = rows.select(rows.rows[[2, 0]], "test")
    assert (part.name, len(part), part[0].answer, part[1].answer) == ("test", 2, "c ", "c")
