"""What a person sees of entities: the preview of tagged words, and a prediction."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from command import veneer

from bases import tiny_bert
from every_task import tagged
from veneer.cli.colours import tag_colour
from veneer.cli.predict import _print, print_entities


def test_the_preview_shows_the_tag_of_each_word(tmp_path: Path) -> None:
    source, base = tagged(tmp_path), tiny_bert(tmp_path / "base")
    done = veneer("preview", source, "--base", base, "--examples", 2)
    assert done.code == 0, done.err
    assert "the label of a word that has one" in " ".join(done.out.split())
    assert "PER" in done.out.split("tokens of a training text")[0]  # counted by type
    assert "/B-LOC" in done.out
    assert "/O" not in done.out
    assert "[[" not in done.out  # tags say it themselves
    tokens = veneer("preview", source, "--base", base, "--examples", 1, "--json").json["examples"][0][
        "tokens"
    ]
    words = Path(source).read_text(encoding="utf-8").split("\n\n")
    tags = [token["tag"] for token in tokens if token["target"]]
    assert tags in [[line.split("\t")[1] for line in block.strip().split("\n")] for block in words]


def test_a_folder_is_previewed_and_a_bad_file_is_refused(tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    (tmp_path / "bad.conll").write_text("Ada\tB-PER\nis\n")
    done = veneer("preview", tmp_path / "bad.conll", "--base", base)
    assert done.code != 0
    assert "line 2 ('is')" in done.err
    (tmp_path / "data").mkdir()
    done = veneer("preview", tmp_path / "data", "--base", base)
    assert done.code != 0
    assert "no file in it has 'train' in its name" in done.err


def test_a_pipe_gets_a_row_for_each_entity(tmp_path: Path) -> None:
    """The same entities as --json, in its order; a text without any gives no row."""
    base, source = tiny_bert(tmp_path / "base"), tmp_path / "spans.json"
    spans = [
        {"text": f"rome is late {k}", "spans": [{"start": 0, "end": 4, "label": "place"}]} for k in range(30)
    ]
    source.write_text(json.dumps(spans), encoding="utf-8")
    adapter = tmp_path / "adapter"
    made = veneer("train", source, "--base", base, "--out", adapter, "--epochs", 6, "--learning-rate", 0.01,
                  "--precision", "fp32", "--no-baselines")  # fmt: skip
    assert made.code == 0, made.err
    texts = ["rome is late 3", "is it", "rome, is it rome?"]
    piped = veneer("predict", adapter, *texts)
    answers = veneer("predict", adapter, *texts, "--json").json["answers"]
    wanted = [
        [str(number), *(str(one[key]) for key in ("label", "text", "start", "end", "score"))]
        for number, answer in enumerate(answers, start=1)
        for one in answer["entities"]
    ]
    assert len(wanted) > 1
    assert [line.split("\t") for line in piped.out.splitlines()] == wanted


def test_a_row_of_tokens_is_shown_to_a_person_as_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The characters of an entity are those of the text, not of the list as it is stored."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(out, "isatty", lambda: True)
    entity = {"start": 7, "end": 15, "label": "loc", "text": "New York", "score": 1.0}
    given = {"tokens": json.dumps(["Ada", "in", "New", "York"])}
    _print(iter([({}, given, {"entities": [entity]})]), ("entities",), every=False)
    assert re.fullmatch(r"Ada in \x1b\[[\d;]+mNew York\x1b\[0m", out.getvalue().splitlines()[0])


def test_a_prediction_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Ada in New York"
    entities = [
        {"start": 0, "end": 3, "label": "per", "text": "Ada", "score": 0.75},
        {"start": 7, "end": 15, "label": "loc", "text": "New York", "score": 1.0},
    ]
    print_entities(entities, text)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        text.split(), ["per", "75.0", "%", "0-3", "Ada"], ["loc", "100.0", "%", "7-15", "New", "York"]
    ]  # fmt: skip
    assert tag_colour("per") != tag_colour("loc")
