"""Files of prompts: which columns are read, what is asked in each row, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veneer.data.conversations import Turn
from veneer.data.prompts import read_prompts
from veneer.errors import ConfigError, DataError

ASKED = Turn("user", "Hi")


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Hi"}, [ASKED]),
        ({"prompt": "Hi", "completion": "Ho", "id": 3}, [ASKED]),
        ({"instruction": "Hi", "input": "there", "output": "Ho"}, [Turn("user", "Hi", "there")]),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, [ASKED]),
        ({"system": "Brief.", "prompt": "Hi"}, [Turn("system", "Brief."), ASKED]),
        ({"text": "Hi", "label": "x"}, [ASKED]),
        ({"anything": "Hi"}, [ASKED]),
        ({"prompt": "Hi", "prompt_id": "1"}, [ASKED]),
        ({"messages": [{"role": "user", "content": "Hi"}]}, [ASKED]),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            [ASKED],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"},
                               {"from": "human", "value": "And?"}]},
            [ASKED, Turn("assistant", "Ho"), Turn("user", "And?")],
        ),
    ],
)  # fmt: skip
def test_what_a_row_asks(row: dict[str, object], turns: list[Turn], tmp_path: Path) -> None:
    file = read_prompts(jsonl(tmp_path / "p.jsonl", row, row))
    for _ in range(2):  # it can be read again
        found = list(file)
        assert [list(asked) for _, asked in found] == [turns, turns]
        assert set(found[0][0]) == set(row)
    assert {choice.value for choice in file.choices} >= set(file.roles.values())


def test_a_text_file_has_a_prompt_a_line_and_csv_may_lack_some(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('Say "hi", now\nSay ho\n', encoding="utf-8")
    assert [turns[0].content for _, turns in read_prompts(tmp_path / "p.txt")] == ['Say "hi", now', "Say ho"]
    (tmp_path / "p.csv").write_text("id,prompt\n1,Hi\n2,\n3,Ho\n", encoding="utf-8")
    assert [len(turns) for _, turns in read_prompts(tmp_path / "p.csv")] == [1, 0, 1]


def test_a_column_that_is_named_wins(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "no", "body": "Hi"})
    assert [turns for _, turns in read_prompts(file, {"prompt": "body"})] == [(ASKED,)]


def test_what_is_refused(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "p.jsonl", {"a": "x", "b": "y"})
    with pytest.raises(DataError, match=r"columns a, b; expected prompt.*columns={'prompt': 'NAME'}"):
        read_prompts(file)
    with pytest.raises(DataError, match=r"no column 'bb' \(asked for as prompt\).*'b'"):
        read_prompts(file, {"prompt": "bb"})
    with pytest.raises(ConfigError, match=r"'promt' is no role.*'prompt'"):
        read_prompts(file, {"promt": "b"})
    (tmp_path / "e.csv").write_text("prompt\n", encoding="utf-8")
    with pytest.raises(DataError, match="no rows below it"):
        read_prompts(tmp_path / "e.csv")
    bad = jsonl(
        tmp_path / "m.jsonl",
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "robot", "content": "x"}]},
    )
    with pytest.raises(DataError, match=r"row 2: message 1 has the role 'robot'.*Mend or remove it"):
        list(read_prompts(bad))
