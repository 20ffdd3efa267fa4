"""docs/how-to.md: every console line and every program in it is run, in order, in one folder."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bases import tiny_bert
from question_files import question_file
from reference.causal import causal_base

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

from command import veneer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page names; the default base is a tiny one."""
    base = tiny_bert(tmp_path / "my-base", max_length=32)
    monkeypatch.setattr(importlib.import_module("veneer.models.locate"), "_bundled", lambda: base)
    monkeypatch.chdir(tmp_path)
    texts = {"spam": "win a free prize, call now", "ham": "thanks for the help with the order"}
    rows = [
        {"text": f"{texts[label]} {i}", "label": label, "note": f"n {i}"}
        for i in range(40)
        for label in texts
    ]
    pd.DataFrame(rows).to_csv("messages.csv", index=False)
    pd.DataFrame([row | {"text": "now " + row["text"]} for row in rows[:20]]).to_csv("test.csv", index=False)
    pd.DataFrame([{"id": i, "body": row["text"]} for i, row in enumerate(rows)]).to_csv(
        "new.csv", index=False
    )
    Path("lines.txt").write_text("win a prize\nthanks for it\n")
    causal_base(tmp_path / "my-writer", max_length=512)
    letters = [{"instruction": f"Write to {i}.", "input": "", "output": f"Dear {i}!"} for i in range(40)]
    Path("letters.json").write_text(json.dumps(letters))
    Path("book.txt").write_text("\n\n".join(f"It was late, and film {i} was good." for i in range(20)))
    Path("asks.jsonl").write_text('{"id": 1, "instruction": "Write."}\n{"id": 2, "instruction": "Do."}\n')
    numbers = [{"text": f"{'free ' * (i % 5)}film {i}", "price": 10 + 2.5 * (i % 5)} for i in range(60)]
    pd.DataFrame(numbers).to_csv("prices.csv", index=False)
    alike = [{"left": f"a film {i}", "right": f"a film {i % 7}", "score": (i % 4) / 2} for i in range(60)]
    pd.DataFrame(alike).to_csv("similar.csv", index=False)
    _entity_files()
    question_file(tmp_path / "questions.json")
    Path("page.txt").write_text("It is late, and the film is a good one.\n")
    Path("questions.txt").write_text("Write to Ada.\n/compare\nAnd to Bob.\n/quit\n")
    Path("run.yaml").write_text("data:\n  source: messages.csv\nepochs: 2\nbaselines: false\n")


def _entity_files() -> None:
    """A folder of CoNLL columns, and a file of spans."""
    Path("news").mkdir()
    for part, first, n in (("train", 0, 30), ("dev", 30, 8), ("test", 40, 8)):
        rows = [f"Ada B-per\nis O\nin O\nNew B-loc\nYork I-loc\n{k} O\n" for k in range(first, first + n)]
        Path(f"news/news.{part}.conll").write_text("\n".join(rows))
    spans = [
        {"text": f"Ada is late {k}", "spans": [{"start": 0, "end": 3, "label": "person"}]} for k in range(30)
    ]
    Path("spans.json").write_text(json.dumps(spans))


@pytest.mark.usefixtures("_folder")
def test_the_page_runs_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    commands = programs = 0
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {"__name__": "page"})
            programs += 1
            continue
        assert language == "console"
        for line in text.splitlines():
            _run(line)
            commands += 1
    assert commands >= 12
    assert programs == 5
    assert "spam" in capsys.readouterr().out
    assert pd.read_csv("answers.csv").columns.tolist() == ["id", "body", "label", "probability"]
    again, first = Path("adapters/again"), Path("adapters/messages")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (first / name).read_bytes()


def _run(line: str) -> None:
    """One line of a console block; `<` feeds a file to standard input, `|` feeds another program."""
    line, _, reader = line.partition(" | ")
    prompt, program, *arguments = shlex.split(line)
    assert (prompt, program) == ("$", "veneer"), line
    given = ""
    if "<" in arguments:
        given = Path(arguments[-1]).read_text()
        arguments = arguments[: arguments.index("<")]
    done = veneer(*arguments, stdin=given)
    assert done.code == 0, f"{line}\n{done.err}"
    if reader:
        subprocess.run(reader, shell=True, input=done.out, text=True, check=True)
