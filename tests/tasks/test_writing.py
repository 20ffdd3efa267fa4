"""Writers: prompts in templates, answers, files of prompts that go on after a stop, conversations."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reference.causal import CHAT_TEMPLATE, causal_base
from veneer.data.conversations import Turn
from veneer.engine.generation import Piece, Sampling, TextGenerator
from veneer.errors import BaseError, CheckpointError, ConfigError, DataError, Interrupted, UserMistake
from veneer.tasks.chat import Chat, Side
from veneer.tasks.prompting import answer_ends, prompt_ids, turns_of
from veneer.tasks.templates import ALPACA, Template
from veneer.tasks.writing import Writer, load_writer
from veneer.tasks.written_file import write_file

SHORT = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {
        "plain": causal_base(place / "plain"),
        "chat": causal_base(place / "chat", "qwen2", template=CHAT_TEMPLATE),
    }


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Writer:
    return load_writer(base=str(folders["plain"]), precision="fp32")


@pytest.fixture(scope="module")
def talking(folders: dict[str, Path]) -> Writer:
    return load_writer(base=str(folders["chat"]), precision="fp32")


def text_of(writer: Writer, ids: list[int]) -> str:
    return str(writer.base.tokenizer.decode(ids))


def test_a_base_alone_goes_on_with_the_text_or_uses_its_own_template(plain: Writer, talking: Writer) -> None:
    assert plain.template == Template("none")
    assert text_of(plain, plain.ids("Every effort")) == "Every effort"
    assert text_of(talking, talking.ids("Hi")) == "[user]Hi[assistant]"
    assert text_of(talking, talking.ids("Hi", raw=True)) == "Hi"
    (answer,) = plain.generate(["Every effort"], max_new_tokens=5)
    assert len(answer.ids) == 5
    assert "".join(piece.text for piece in plain.stream("Every effort", max_new_tokens=5)) == answer.text
    assert plain.generate(["Every effort"], SHORT, max_new_tokens=5) == [answer]
    told: list[tuple[int, int]] = []
    plain.generate(["a", "b", "c"], SHORT, progress=lambda *given: told.append(given))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("prompt", "rendered"),
    [
        ("Hi", "[user]Hi[assistant]"),
        ({"prompt": "Hi"}, "[user]Hi[assistant]"),
        ({"instruction": "Hi", "input": "you"}, "[user]Hi\n\nyou[assistant]"),
        ({"prompt": "Hi", "system": "Be"}, "[system]Be[user]Hi[assistant]"),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"},
                {"role": "user", "content": "?"},
            ],
            "[user]Hi[assistant]Ho<|end|>[user]?[assistant]",
        ),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "[user]Hi[assistant]"),
    ],
)
def test_prompts_are_what_transformers_renders(prompt: Any, rendered: str, talking: Writer) -> None:
    assert text_of(talking, talking.ids(prompt)) == rendered
    messages = [{"role": turn.role, "content": turn.content} for turn in turns_of(prompt)]
    if not any(turn.input for turn in turns_of(prompt)):
        wanted = talking.base.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert talking.ids(prompt) == list(wanted["input_ids"])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("  ", "prompt 1: it is empty"),
        ({"promt": "Hi"}, "it has the keys promt; expected prompt"),
        ([{"role": "robot", "content": "Hi"}], "message 1 is .*robot.*expected an object with role"),
        ([{"role": "assistant", "content": "Hi"}], "last message has to be the user's"),
        ("x" * 95, "prompt 1 has 112 tokens; the base reads 96 at most"),
    ],
)
def test_prompts_that_are_refused(prompt: Any, says: str, talking: Writer) -> None:
    with pytest.raises(DataError, match=says):
        talking.generate([prompt])


def test_calls_that_are_refused(plain: Writer, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="put the one prompt into a list"):
        plain.generate("Hi")
    with pytest.raises(ConfigError, match=r"'max_tokens'.*max_new_tokens"):
        plain.generate(["Hi"], max_tokens=3)
    with pytest.raises(DataError, match="without a template there is one text"):
        plain.ids([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")])
    with pytest.raises(UserMistake, match="name an adapter folder, or a base"):
        load_writer()
    with pytest.raises(UserMistake, match="holds a whole model and no adapter"):
        load_writer(plain.base.folder)
    from bases import tiny_bert

    with pytest.raises(BaseError, match="is an encoder"):
        load_writer(base=str(tiny_bert(tmp_path / "bert")))


def test_what_ends_an_answer_is_read_from_the_template(talking: Writer) -> None:
    tokenizer = talking.base.tokenizer
    assert answer_ends(Template("base", CHAT_TEMPLATE), tokenizer) == ((256,), ())
    assert answer_ends(Template("alpaca", ALPACA), tokenizer) == ((256,), ())
    words = CHAT_TEMPLATE.replace("'<|end|>'", "' ###\n'")
    assert answer_ends(Template("given", words), tokenizer) == ((), ("###",))
    assert answer_ends(Template("none"), tokenizer) == ((), ())


def test_alpacas_prompt_is_the_known_one(plain: Writer) -> None:
    ids = prompt_ids(Template("alpaca", ALPACA), turns_of("Sum up."), plain.base.tokenizer)
    assert text_of(plain, ids) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSum up.\n\n### Response:\n"
    )


@pytest.fixture(scope="module")
def deaf(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """A base whose template writes nothing of a system prompt."""
    template = CHAT_TEMPLATE.replace("in messages %}", "in messages if m.role != 'system' %}")
    base = causal_base(tmp_path_factory.mktemp("deaf") / "base", "qwen2", template=template)
    return load_writer(base=str(base), precision="fp32")


def test_a_system_prompt_that_the_template_drops_is_warned_of_once(
    deaf: Writer, talking: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    brief, long = ({"prompt": "Hi", "system": text} for text in ("Be brief.", "Be long."))
    talking.generate([brief], SHORT)
    deaf.generate(["Hi"], SHORT)
    assert caplog.messages == []
    deaf.generate([brief, "Hi", long], SHORT)
    deaf.generate([brief, long], SHORT)
    says = "The template writes nothing of the system prompt{}, so that the model never sees it. Put it into the "
    says += "question."
    assert caplog.messages == [says.format(" in 2 of 3 prompts")]
    caplog.clear()
    list(deaf.stream({"prompt": "Hi", "system": "Be kind."}, SHORT))
    chat = Chat(deaf, SHORT, system="Be kind.")
    list(chat.ask("Hi"))
    assert caplog.messages == [says.format("")]
    chat.system = "Be blunt."
    list(chat.ask("And?"))
    assert caplog.messages == [says.format("")] * 2
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_file_whose_system_prompts_are_dropped(
    deaf: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = source(tmp_path / "p.jsonl", 3)
    write_file(lambda: deaf, prompts, tmp_path / "a.jsonl", sampling=SHORT)
    assert caplog.messages == []
    write_file(lambda: deaf, prompts, tmp_path / "b.jsonl", sampling=SHORT, system="Be brief.")
    (said,) = caplog.messages
    assert "writes nothing of the system prompt in 3 of 3 prompts" in said


def source(path: Path, rows: int = 9) -> Path:
    lines = [{"id": i, "prompt": "" if i == 4 else "word " * (1 + i % 4) + str(i)} for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_prompts(plain: Writer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = write_file(
        lambda: plain, source(tmp_path / "p.jsonl"), tmp_path / "a.jsonl", sampling=SHORT,
        progress=lambda *given: seen.append(given),
    )  # fmt: skip
    rows = lines_of(tmp_path / "a.jsonl")
    assert [row["id"] for row in rows] == list(range(9))
    assert (done.rows, done.empty, done.resumed, done.columns) == (9, 1, 0, ("answer", "finish"))
    for row in rows:
        if row["prompt"]:
            (alone,) = plain.generate([row["prompt"]], SHORT)
            assert (row["answer"], row["finish"]) == (alone.text, alone.finish)
    assert (rows[4]["answer"], rows[4]["finish"]) == (None, None)
    assert seen[-1] == (8, 9)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "p.jsonl"]
    with pytest.raises(UserMistake, match="exists already"):
        write_file(lambda: plain, tmp_path / "p.jsonl", tmp_path / "a.jsonl", sampling=SHORT)
    write_file(lambda: plain, tmp_path / "p.jsonl", tmp_path / "a.csv", sampling=SHORT)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["answer"] for row in table] == [row["answer"] or "" for row in rows]


def stopping(after: int, real: Callable[..., Iterator[Piece]]) -> Callable[..., Iterator[Piece]]:
    """A generator that is stopped by Ctrl-C behind so many pieces."""

    def stream(self: TextGenerator, *given: Any, **more: Any) -> Iterator[Piece]:
        for number, piece in enumerate(real(self, *given, **more)):
            if number == after:
                raise KeyboardInterrupt
            yield piece

    return stream


def test_a_file_that_was_stopped_goes_on_to_the_same_answers(
    plain: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Sampling(max_new_tokens=6, temperature=1.0, seed=7)
    file, out = source(tmp_path / "p.jsonl"), tmp_path / "a.jsonl"
    write_file(lambda: plain, file, tmp_path / "whole.jsonl", sampling=drawn)
    with monkeypatch.context() as patch:
        patch.setattr(TextGenerator, "stream", stopping(3, TextGenerator.stream))
        with pytest.raises(Interrupted, match="stopped with 3 of 9 prompts answered"):
            write_file(lambda: plain, file, out, sampling=drawn)
    assert not out.exists()
    kept = tmp_path / ".a.jsonl.partial"
    with kept.open("a", encoding="utf-8") as text:
        text.write('{"row": 8, "ans')  # as a kill would leave it
    with pytest.raises(CheckpointError, match=r"with another sampling.*fresh=True"):
        write_file(lambda: plain, file, out, sampling=SHORT)
    done = write_file(lambda: plain, file, out, sampling=drawn)
    assert (done.resumed, done.rows) == (3, 9)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not kept.exists()
    kept.write_text('{"source": "other"}\n', encoding="utf-8")
    write_file(lambda: plain, file, out, sampling=SHORT, overwrite=True, fresh=True)
    assert lines_of(out)[0]["answer"] == plain.generate(["word 0"], SHORT)[0].text


def test_a_prompt_that_is_too_long_is_told_before_any_is_answered(plain: Writer, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("short\n" + "long " * 40 + "\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"p.txt, row 2: the prompt has \d+ tokens; the base reads 96 at most"
    ):
        write_file(lambda: plain, tmp_path / "p.txt", tmp_path / "a.csv", sampling=SHORT)
    assert [file.name for file in tmp_path.iterdir()] == ["p.txt"]


def said(chat: Chat, question: str) -> dict[Side, str]:
    answers: dict[Side, str] = {}
    for piece in chat.ask(question):
        answers[piece.side] = answers.get(piece.side, "") + piece.text
    return answers


def test_a_conversation_is_what_its_whole_history_gives(talking: Writer) -> None:
    chat = Chat(talking, SHORT, system="Be")
    history = [Turn("system", "Be")]
    for question in ("Hi", "And?"):
        history.append(Turn("user", question))
        (wanted,) = talking.generate([history], SHORT)
        assert said(chat, question) == {"base": wanted.text}
        history.append(Turn("assistant", wanted.text))
    assert chat.turns("base") == tuple(history[1:])
    chat.reset()
    assert chat.turns("base") == ()
    assert said(chat, "Hi") == {"base": talking.generate([[history[0], Turn("user", "Hi")]], SHORT)[0].text}


def test_a_history_that_no_longer_fits_loses_its_beginning(talking: Writer) -> None:
    chat, dropped = Chat(talking, SHORT), []
    for number in range(6):
        for piece in chat.ask(f"question {number}"):
            dropped += [piece.dropped] if not piece.text and piece.answer is None else []
        turns = list(chat.turns("base"))
        assert turns[-2] == Turn("user", f"question {number}")
    assert dropped[:2] == [0, 0]
    assert sum(dropped) >= 2
    assert all(count % 2 == 0 for count in dropped)
    with pytest.raises(DataError, match="the question has 217 tokens"):
        said(chat, "x" * 200)
    assert chat.turns("base") == tuple(turns)


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(talking: Writer) -> None:
    chat, shown = Chat(talking, Sampling(max_new_tokens=30)), ""
    with contextlib.closing(chat.ask("Hi there")) as answer:
        for piece in answer:
            shown += piece.text
            if len(shown) > 3:
                break
    assert chat.turns("base") == (Turn("user", "Hi there"), Turn("assistant", shown))


def test_without_turns_every_question_stands_alone(plain: Writer) -> None:
    chat = Chat(plain, SHORT)
    assert not chat.remembers
    for question in ("One", "Two"):
        assert said(chat, question) == {"base": plain.generate([question], SHORT)[0].text}
