"""`veneer predict`: texts, standard input, files of every kind, and what a file of answers holds."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from command import process, veneer
from docs_json import documented
from tiny_adapter import Trained


def test_texts_as_arguments(trained: Trained) -> None:
    done = veneer("predict", trained.adapter, "win a free prize", "thanks for the film", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == documented("predict")
    answers = done.json["answers"]
    assert [answer["label"] for answer in answers] == ["spam", "ham"]
    assert [answer["text"] for answer in answers] == ["win a free prize", "thanks for the film"]
    for answer in answers:
        assert answer["probability"] == max(answer["probabilities"].values()) > 0.5


def test_a_pipe_gets_columns_with_tabs(trained: Trained) -> None:
    done = veneer("predict", trained.adapter, "win a\tfree prize", "--all-probabilities")
    (row,) = csv.reader(done.out.splitlines(), delimiter="\t")
    assert row[0] == "spam"
    assert row[2] == "win a\tfree prize"
    assert sum(map(float, row[3:])) == pytest.approx(1, abs=1e-5)  # printed with six digits


def test_standard_input_is_a_text_a_line(trained: Trained) -> None:
    done = veneer("predict", trained.adapter, "-", "--json", stdin="win a free prize\n\ni love the film\n")
    assert [answer["label"] for answer in done.json["answers"]] == ["spam", None, "ham"]


def test_no_text_is_a_mistake(trained: Trained) -> None:
    for arguments, said in (
        ([], "give texts, --file FILE, or - for standard input"),
        ([""], "text 1 is empty"),
        (["x", "--file", trained.table], "give only one of"),
        (["x", "--out", "y.csv"], "--out, --text-column and --encoding go with --file"),
    ):
        done = veneer("predict", trained.adapter, *arguments)
        assert done.code == 2
        assert said in done.err
    empty = veneer("predict", trained.adapter, "-", stdin="")
    assert empty.code == 2
    assert "no text" in empty.err
    quietly = veneer("predict", trained.adapter, "-", "--json", stdin="")
    assert quietly.code == 2
    assert quietly.json["error"]["type"] == "DataError"


def test_how_a_file_is_written_is_said_as_for_training(trained: Trained, tmp_path: Path) -> None:
    """Two columns with a sign between them that nobody guesses, in letters that nobody guesses."""
    file, flags = tmp_path / "odd.csv", ("--encoding", "cp1251", "--delimiter", "~")
    rows = [("win a free prize now, друг", "spam"), ("i love the film, друг", "ham")]
    file.write_bytes(("text~label\n" + "".join(f"{text}~{label}\n" for text, label in rows)).encode("cp1251"))
    for verb in (("predict", trained.adapter, "--file", file), ("evaluate", trained.adapter, file)):
        refused = veneer(*verb)
        assert refused.code == 2
        assert "say its encoding with --encoding NAME" in refused.err
        assert "has no column" in veneer(*verb, *flags, "--text-column", "txt").err
        assert veneer(*verb, *flags, "--json").code == 0
    answers = veneer("predict", trained.adapter, "--file", file, *flags, "--json").json["answers"]
    assert [answer["text"] for answer in answers] == [text for text, _ in rows]
    assert [answer["label"] for answer in answers] == [label for _, label in rows]
    assert veneer("evaluate", trained.adapter, file, *flags, "--json").json["rows"] == 2
    out = tmp_path / "answers.csv"
    assert veneer("predict", trained.adapter, "--file", file, *flags, "--no-header", "--text-column", "column_1",
                  "--out", out).code == 0  # fmt: skip
    assert len(pd.read_csv(out)) == 3
    assert "--encoding go with --file" in veneer("predict", trained.adapter, "x", "--encoding", "cp1251").err
    assert (
        "string should have at most 1" in veneer("evaluate", trained.adapter, file, "--delimiter", "~~").err
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_file_comes_back_with_its_columns_and_answers(
    trained: Trained, tmp_path: Path, suffix: str
) -> None:
    rows = [
        {"text": 'win "free"\nprize, now', "label": "x", "n": "1"},
        {"text": "", "label": "y", "n": "2"},
        {"text": "thanks\tfor the film", "label": "ö", "n": "3"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / f"out{suffix}"
    flags = ["--file", tmp_path / "in.csv", "--out", out, "--text-column", "text", "--all-probabilities"]
    done = veneer("predict", trained.adapter, *flags, "--json")
    assert done.code == 0, done.err
    assert done.json["rows"] == 3
    assert done.json["empty"] == 1
    assert done.json["columns"] == ["predicted_label", "probability", "probability_ham", "probability_spam"]
    if suffix == ".jsonl":
        found = pd.DataFrame([json.loads(line) for line in out.read_text().splitlines()])
    else:
        found = pd.read_csv(out, sep="\t" if suffix == ".tsv" else ",", keep_default_na=False)
    assert found["text"].tolist() == [row["text"] for row in rows]
    assert found["label"].tolist() == ["x", "y", "ö"]
    assert found["predicted_label"].tolist()[::2] == ["spam", "ham"]
    assert found["predicted_label"].replace("", None).isna().tolist() == [False, True, False]


def test_kinds_of_json_are_kept(trained: Trained, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "win a free prize", "n": 5, "tags": ["a", "b"], "ok": true}\n' * 3)
    done = veneer("predict", trained.adapter, "--file", source, "--out", out, "--text-column", "text")
    assert done.code == 0, done.err
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["n"], first["tags"], first["ok"], first["label"]) == (5, ["a", "b"], True, "spam")


def test_a_file_of_lines_and_a_file_without_out(trained: Trained, tmp_path: Path) -> None:
    source = tmp_path / "lines.txt"
    source.write_text('win, a "free" prize\ni love the film\n')
    done = veneer("predict", trained.adapter, "--file", source)
    assert done.code == 0, done.err
    found = list(csv.reader(done.out.splitlines(), delimiter="\t"))
    assert [row[0] for row in found] == ["spam", "ham"]
    assert found[0][2] == 'win, a "free" prize'


def test_an_answer_file_is_not_replaced_unasked(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    flags = ["--file", trained.table, "--out", out]
    done = veneer("predict", trained.adapter, *flags)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert out.read_text() == "mine"
    assert veneer("predict", trained.adapter, *flags, "--overwrite").code == 0
    before = out.read_bytes()
    onto_itself = veneer("predict", trained.adapter, "--file", out, "--out", out, "--overwrite")
    assert onto_itself.code == 2
    assert "is the file that is read" in onto_itself.err
    assert out.read_bytes() == before
    assert len(pd.read_csv(out)) == 90
    unknown = veneer("predict", trained.adapter, "--file", trained.table, "--out", tmp_path / "out.xls")
    assert unknown.code == 2
    assert ".jsonl" in unknown.err


def test_a_bad_input_leaves_no_half_file(trained: Trained, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "one two"}\n' * 3000 + "{broken\n")
    done = veneer("predict", trained.adapter, "--file", source, "--out", tmp_path / "out.csv")
    assert done.code == 2
    assert "3001" in done.err.replace(",", "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_faults_of_adapters(trained: Trained, tmp_path: Path) -> None:
    missing = veneer("predict", tmp_path / "none", "x", "--json")
    assert missing.code == 2
    assert missing.json["error"]["type"] == "AdapterError"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in trained.adapter.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    whole = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(whole[:-100])
    (damaged / "veneer.json").write_text("{")
    done = veneer("predict", damaged, "x")
    assert done.code == 2
    assert "adapter_model.safetensors" in done.err
    assert "veneer.json" in done.err
    elsewhere = veneer("predict", trained.adapter, "x", "--base", tmp_path / "nobase")
    assert elsewhere.code == 2
    assert "nobase" in elsewhere.err


def test_a_reader_that_stops_ends_it_quietly(trained: Trained, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("win a free prize\n" * 20_000)  # more than a pipe holds
    with process("predict", trained.adapter, "--file", source, "--no-verify") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith(b"spam")
        running.stdout.close()
        said = running.stderr.read().decode()
        assert running.wait(60) == 141  # 128 + SIGPIPE, as other programs of the shell
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_ctrl_c_ends_with_130_and_leaves_nothing_half(trained: Trained, tmp_path: Path) -> None:
    source, out = tmp_path / "many.txt", tmp_path / "out.csv"
    source.write_text("win a free prize\n" * 300_000)
    with process("predict", trained.adapter, "--file", source, "--out", out, "--no-verify") as running:
        while len(list(tmp_path.iterdir())) == 1:  # until it writes
            time.sleep(0.05)
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        said = running.stderr.read().decode()
        assert running.wait(60) == 130
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["many.txt"]
