"""veneer generate and veneer chat on the command line."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from command import process, veneer
from docs_json import documented

from instruction_cases import writing_base
from reference.causal import CHAT_TEMPLATE, causal_base
from veneer.cli import main
from veneer.cli.writing import printable
from veneer.engine.generation import Piece, TextGenerator
from veneer.tasks.writing import load_writer


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_base(tmp_path_factory.mktemp("plain") / "base")


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_base(tmp_path_factory.mktemp("talking") / "base", "llama", template=CHAT_TEMPLATE)


def answer(base: Path, prompt: object, **settings: object) -> str:
    (found,) = load_writer(base=str(base), precision="fp32").generate([prompt], **settings)  # type: ignore[list-item]
    return found.text


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_help_with_examples_in_80_columns(verb: str) -> None:
    done = veneer(verb, "--help")
    assert done.code == 0
    assert done.out.count(f"veneer {verb}") >= 3
    assert "…" not in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_file_of_prompts_in_another_encoding(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("друг, друзья, враги\nдруг\n".encode("cp1251"))
    flags = ("--base", plain, "--precision", "fp32", "-n", 2, "--file", file)
    assert "--encoding NAME" in veneer("generate", *flags).err
    found = veneer("generate", *flags, "--encoding", "cp1251", "--json").json["answers"]
    assert [one["prompt"] for one in found] == ["друг, друзья, враги", "друг"]
    done = veneer("generate", *flags, "--encoding", "cp1251", "--out", tmp_path / "out.jsonl")
    assert done.code == 0, done.err
    assert "go with --file" in veneer("generate", *flags[:-2], "x", "--encoding", "cp1251").err


def test_one_prompt_streams_and_several_are_told_apart(plain: Path) -> None:
    flags = ("--base", plain, "--precision", "fp32", "-n", 5)
    one = veneer("generate", *flags, "Every effort")
    assert one.code == 0, one.err
    wanted = answer(plain, "Every effort", max_new_tokens=5)
    assert one.out == wanted + "\n"
    assert "without an adapter" in one.err
    both = veneer("generate", *flags, "Every effort", "moves")
    other = answer(plain, "moves", max_new_tokens=5)
    assert both.out == f"> Every effort\n{wanted}\n\n> moves\n{other}\n"
    assert veneer("generate", *flags, "-", stdin="Every effort\n\nmoves\n").out == both.out


def test_generate_json_and_sampling(plain: Path) -> None:
    flags = ("--base", plain, "--precision", "fp32", "-n", 6, "-t", 0.9, "--top-k", 20, "--top-p", 0.95)
    done = veneer("generate", *flags, "--seed", 3, "--stop", r"\n\n", "--json", "Hello")
    assert done.code == 0, done.err
    assert set(done.json) == documented("generate")
    found = done.json["answers"][0]
    settings = {"max_new_tokens": 6, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 3}
    assert found["text"] == answer(plain, "Hello", **settings, stop=["\n\n"])
    assert done.json["sampling"]["stop"] == ["\n\n"]
    assert found["new_tokens"] == done.json["new_tokens"] <= 6
    assert veneer("generate", *flags, "--seed", 4, "--json", "Hello").json["answers"][0] != found


def test_a_file_of_prompts(talking: Path, tmp_path: Path) -> None:
    rows = [{"task": "Say hi", "output": "x"}, {"task": "Say ho", "output": "y"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ("--base", talking, "--precision", "fp32", "-n", 5, "--file", tmp_path / "p.jsonl")
    done = veneer(
        "generate",
        *flags,
        "--column",
        "instruction=task",
        "--system",
        "Be",
        "--out",
        tmp_path / "a.jsonl",
        "--json",
    )
    assert done.code == 0, done.err
    assert set(done.json) == documented("generate --out")
    assert (done.json["rows"], done.json["columns"]) == (2, ["answer", "finish"])
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in written:
        assert row["answer"] == answer(talking, {"prompt": row["task"], "system": "Be"}, max_new_tokens=5)
    again = veneer("generate", *flags, "--out", tmp_path / "a.jsonl")
    assert again.code == 2
    assert "--overwrite" in again.err
    shown = veneer("generate", *flags, "--column", "instruction=task", "--json")
    assert [found["prompt"] for found in shown.json["answers"]] == ["Say hi", "Say ho"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "name an ADAPTER folder and prompts"),
        (("adapters/nowhere", "x"), "no adapter folder adapters/nowhere"),
        (("adapters/nowhere", "x", "--base", "BASE"), "no adapter folder adapters/nowhere"),
        (("--base", "BASE"), "give prompts, --file FILE, or -"),
        (("--base", "BASE", "x", "--file", "y.txt"), "give only one of"),
        (("--base", "BASE", "x", "--out", "y.csv"), "go with --file"),
        (("--base", "BASE", "x", "--column", "prompt=a"), "go with --file"),
        (("--base", "BASE", "--file", "y.txt", "--column", "prompt"), "expected ROLE=NAME"),
        (("--base", "BASE", "x", "--top-k", "5"), "--top-k 5 has no effect at temperature 0"),
        (("--base", "BASE", "x", "--temperature", "-1"), "--temperature is -1"),
        (("--base", "BASE", " "), "prompt 1: it is empty"),
        (("--base", "BASE", "-"), "standard input holds no text"),
        (("--base", "BASE", "x", "--raw", "--system", "y"), "--system needs a template"),
        (("--base", "BASE", "--file", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_generate_refuses(given: tuple[str, ...], says: str, plain: Path) -> None:
    done = veneer("generate", *(str(plain) if word == "BASE" else word for word in given))
    assert done.code == 2, done.err
    assert says in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_chat_from_a_pipe(talking: Path) -> None:
    flags = ("--base", talking, "--precision", "fp32", "-n", 5)
    lines = "Hi\nAnd?\n/reset\n\nHi\n/system Be\nHi\n/nonsense\n//Hi\n/compare\n/help\n/quit\nnever\n"
    done = veneer("chat", *flags, "--json", stdin=lines)
    assert done.code == 0, done.err
    assert set(done.json) == documented("chat")
    hi = answer(talking, "Hi", max_new_tokens=5)
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": hi}]
    said = [turn["answers"]["base"]["text"] for turn in done.json["turns"]]
    assert [turn["question"] for turn in done.json["turns"]] == ["Hi", "And?", "Hi", "Hi", "/Hi"]
    assert said[:3] == [
        hi,
        answer(talking, [*history, {"role": "user", "content": "And?"}], max_new_tokens=5),
        hi,
    ]
    be = [{"role": "system", "content": "Be"}, *history, {"role": "user", "content": "Hi"}]
    assert said[3] == answer(talking, be, max_new_tokens=5)
    for told in (
        "forgotten",
        "/nonsense is no command",
        "no adapter to compare",
        "/quit leave",
        "a system prompt",
    ):
        assert told in " ".join(done.err.split())
    shown = veneer("chat", *flags, stdin="Hi\n")
    assert shown.out == hi + "\n"


def test_a_system_prompt_that_the_template_drops_is_told(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("in messages %}", "in messages if m.role != 'system' %}")
    base = causal_base(tmp_path / "base", "llama", template=template)
    (tmp_path / "p.txt").write_text("Hi\n", encoding="utf-8")
    flags = ("--base", base, "--precision", "fp32", "-n", 2, "--system", "Be brief.")
    says = "The template writes nothing of the system prompt, so that the model never sees it."
    asked = ("generate", *flags, "Hi"), ("generate", *flags, "--file", tmp_path / "p.txt"), ("chat", *flags)
    for line in asked:
        done = veneer(*line, stdin="Hi\nAnd?\n")
        assert done.code == 0
        assert " ".join(done.err.split()).count(f"note: {says}") == 1
        assert says not in veneer(*line, "--quiet", stdin="Hi\n").err
        (said,) = veneer(*line, "--json", stdin="Hi\n").json["warnings"]
        assert said.startswith(says)
    out = veneer("generate", *flags, "--file", tmp_path / "p.txt", "--out", tmp_path / "a.csv", "--json")
    assert out.json["warnings"][0].startswith(says)


def test_answers_that_were_cut_are_told(plain: Path, talking: Path) -> None:
    one = veneer("generate", "--base", plain, "--precision", "fp32", "-n", 3, "Every effort")
    assert "the answer was cut at 3 tokens; --max-new-tokens allows more" in " ".join(one.err.split())
    two = veneer("generate", "--base", plain, "--precision", "fp32", "-n", 3, "Every", "effort")
    assert "2 of 2 answers were cut at 3 tokens" in " ".join(two.err.split())
    assert "cut at 3" not in veneer("generate", "--base", plain, "-n", 3, "a", "--quiet").err
    chat = veneer("chat", "--base", talking, "--precision", "fp32", "-n", 2, stdin="Hi\n")
    assert "the answer was cut at 2 tokens" in " ".join(chat.err.split())


def test_a_terminal_is_not_steered_by_what_a_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "red \x1b[31m\x07\r and\n\twhite é 👩‍👧"
    assert printable(text) == text  # a pipe
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert printable(text) == "red \ufffd[31m\ufffd\ufffd and\n\twhite é 👩‍👧"


def test_a_question_that_is_too_long_does_not_end_the_chat(talking: Path) -> None:
    done = veneer("chat", "--base", talking, "--precision", "fp32", "-n", 5, stdin="x" * 200 + "\nHi\n")
    assert done.code == 0
    assert "the question has" in done.err
    assert done.out == answer(talking, "Hi", max_new_tokens=5) + "\n"


def test_ctrl_c_stops_the_answer_and_not_the_chat(talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = TextGenerator.stream, iter(["Hi", KeyboardInterrupt(), "Hi", EOFError()])

    def stream(self: TextGenerator, *given: object, **more: object) -> Iterator[Piece]:
        for piece in real(self, *given, **more):  # type: ignore[arg-type]
            yield piece
            if not stopped:
                stopped.append(True)
                raise KeyboardInterrupt

    def typed(_: str) -> str:
        found = next(asked)
        if isinstance(found, BaseException):
            raise found
        return found

    stopped: list[bool] = []
    monkeypatch.setattr(TextGenerator, "stream", stream)
    monkeypatch.setattr(builtins, "input", typed)
    terminal = mock.Mock()
    terminal.isatty = lambda: True
    with mock.patch.object(sys, "stdin", terminal):
        done = _on_a_terminal("chat", "--base", str(talking), "--precision", "fp32", "-n", "8")
    assert done[0] == 0, done[2]
    assert "stopped" in done[2]
    assert "/quit or Ctrl-D leaves" in done[2]
    first = next(iter(load_writer(base=str(talking), precision="fp32").stream("Hi", max_new_tokens=8))).text
    assert done[1].startswith(first + "\n")  # a piece of the first answer, and then the second one
    assert len(done[1]) > len(first) + 4


def _on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """The command line with the standard input that stands there now."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, verb: str) -> None:
    base = writing_base(tmp_path / "base")
    prompts = ["-"] if verb == "generate" else []
    with process(verb, "--base", base, *prompts, LC_ALL="C", PYTHONUTF8="1") as running:
        assert running.stdin is not None
        _, said = running.communicate(b"\xff\xfe\n")
    assert running.returncode == 2
    assert b"standard input is not UTF-8 text" in said


def test_a_prompt_with_half_characters_is_refused(tmp_path: Path) -> None:
    done = veneer("generate", "--base", writing_base(tmp_path / "base"), "a \udcff b")
    assert done.code == 2
    assert "bytes that are no UTF-8 text" in done.err
