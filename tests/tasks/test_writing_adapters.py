"""Adapters that write: ours and PEFT's, against PEFT's own model and transformers' `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.testing import assert_close

from reference.causal import CHAT_TEMPLATE, causal_base
from small_adapters import written
from small_writers import peft_writer, written_writer
from veneer.engine.generation import Sampling
from veneer.errors import UserMistake
from veneer.lora import active_adapters
from veneer.tasks.chat import Chat
from veneer.tasks.loading import load
from veneer.tasks.templates import Template
from veneer.tasks.writing import Writer, load_writer

PROMPTS = ["Say hi", {"instruction": "Sum", "input": "1 2"}, "Go on, please"]
SHORT = Sampling(max_new_tokens=10)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_base(tmp_path_factory.mktemp("base") / "llama", "llama", max_length=400, begins=True)


@pytest.fixture(scope="module")
def ours(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_writer(tmp_path_factory.mktemp("ours") / "adapter", base)


@pytest.fixture(scope="module")
def writer(ours: Path) -> Writer:
    return load_writer(ours, precision="fp32")


def by_transformers(model: Any, ids: list[int]) -> list[int]:
    """The greedy answer, without its end."""
    rows = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=0,
        )
    found = out[0, len(ids) :].tolist()
    return found[: found.index(256)] if 256 in found else found


def pefts(base: Path, adapter: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def test_an_adapter_writes_what_peft_writes_and_without_it_the_base_does(
    base: Path, ours: Path, writer: Writer
) -> None:
    theirs, plain = pefts(base, ours), transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    ids = writer.all_ids(PROMPTS)
    text = writer.base.tokenizer.decode(ids[1])
    assert text.startswith("<|end|>Below is an instruction")  # the token before every text, as in training
    assert "### Input:\n1 2\n\n### Response:\n" in text
    with_it, without = writer.generate(PROMPTS, SHORT), writer.generate(PROMPTS, SHORT, adapter=False)
    assert [list(answer.ids) for answer in with_it] == [by_transformers(theirs, one) for one in ids]
    assert [list(answer.ids) for answer in without] == [by_transformers(plain, one) for one in ids]
    assert with_it != without


def test_the_adapter_is_on_between_the_pieces_of_the_base(writer: Writer) -> None:
    model, ids = writer.base.model, torch.tensor([writer.ids("Say hi")])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    pieces = 0
    for piece in writer.stream("Say hi", SHORT, adapter=False):
        pieces += bool(piece.text)
        assert active_adapters(model) == ("default",)
        with torch.no_grad():
            assert_close(model(input_ids=ids).logits, wanted, rtol=0, atol=0)
    assert pieces > 1


def test_a_folder_of_peft(base: Path, tmp_path: Path) -> None:
    adapter = peft_writer(tmp_path / "theirs", base)
    writer = load_writer(adapter, base=str(base), precision="fp32")
    assert writer.template == Template("none")
    theirs = pefts(base, adapter)
    ids = writer.all_ids(["Say hi", "Go on"])
    assert [writer.base.tokenizer.decode(one) for one in ids] == ["<|end|>Say hi", "<|end|>Go on"]
    found = writer.generate(["Say hi", "Go on"], SHORT)
    assert [list(answer.ids) for answer in found] == [by_transformers(theirs, one) for one in ids]


def test_a_folder_of_peft_on_a_base_with_a_chat_template(tmp_path: Path) -> None:
    base = causal_base(tmp_path / "base", "qwen2", template=CHAT_TEMPLATE)
    writer = load_writer(peft_writer(tmp_path / "theirs", base), precision="fp32")
    assert writer.template == Template("base", CHAT_TEMPLATE)
    assert writer.base.tokenizer.decode(writer.ids("Hi")) == "[user]Hi[assistant]"


def test_an_adapter_for_texts_goes_on_with_them_as_they_stand(base: Path, tmp_path: Path) -> None:
    writer = load_writer(written_writer(tmp_path / "a", base, data="text"), precision="fp32")
    assert writer.base.tokenizer.decode(writer.ids("Once upon")) == "<|end|>Once upon"
    assert not Chat(writer).remembers


def test_both_sides_of_a_conversation(writer: Writer) -> None:
    chat = Chat(writer, SHORT)
    said: dict[str, str] = {"adapter": "", "base": ""}
    list(chat.ask("One"))
    heard = chat.turns("adapter")
    chat.let_answer("adapter", "base")
    assert chat.turns("base") == heard  # it has heard what the adapter said
    for piece in chat.ask("Tell me"):
        said[piece.side] += piece.text
    for side, adapter in (("adapter", True), ("base", False)):
        (wanted,) = writer.generate([[*heard, chat.turns("adapter")[2]]], SHORT, adapter=adapter)
        assert said[side] == wanted.text
    assert chat.turns("base")[3] != chat.turns("adapter")[3]
    chat.let_answer("base")
    assert {piece.side for piece in chat.ask("Three")} == {"base"}


def test_a_classifier_does_not_write(tmp_path: Path) -> None:
    from bases import tiny_gpt2

    adapter = written(tmp_path / "a", tiny_gpt2(tmp_path / "base"), target_modules=["c_attn"])
    with pytest.raises(UserMistake, match=r"is for classification, which writes no text.*veneer predict"):
        load_writer(adapter)


def test_from_python(ours: Path, writer: Writer) -> None:
    adapted = load(ours, precision="fp32")
    answers = adapted.generate(PROMPTS, max_new_tokens=10)
    assert answers == [answer.text for answer in writer.generate(PROMPTS, SHORT)]
    assert "".join(adapted.stream("Say hi", max_new_tokens=10)) == answers[0]
