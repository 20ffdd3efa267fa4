"""Templates and tokens: what the model is asked, what it answers, and which tokens the loss reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from instruction_cases import CHATML, REASONING, chat_tokenizer
from reference.causal import CHAT_TEMPLATE, byte_tokenizer
from veneer.data.conversations import Conversation, Turn
from veneer.errors import ConfigError, DataError
from veneer.tasks.rendered import NOT_READ, Rendered, Renderer, next_labels
from veneer.tasks.templates import ALPACA, Template, choose_template

ASKED = Turn("user", "Name a colour.")
ONE = Conversation((ASKED, Turn("assistant", "Red.")))
TWO = Conversation(
    (
        Turn("system", "Be kind."),
        ASKED,
        Turn("assistant", "Red."),
        Turn("user", "More"),
        Turn("assistant", "Blue"),
    )
)


def merging_tokenizer() -> Any:
    """Bytes, and one merge: a line break and an "x" become one token, across the end of a prompt too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "Ċx", "<s>", "</s>"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "x")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def _read_text(one: Rendered, tokenizer: Any) -> str:
    return tokenizer.decode([token for token, read in zip(one.ids, one.read, strict=True) if read])


def test_alpacas_layout() -> None:
    tokenizer = byte_tokenizer()
    one = Renderer(Template("alpaca", ALPACA), tokenizer).conversations([ONE], "answer")[0].parts[-1]
    assert tokenizer.decode(one.ids) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a colour.\n\n### Response:\nRed.<|end|>"
    )
    assert _read_text(one, tokenizer) == "Red.<|end|>"


def test_alpacas_layout_with_an_input() -> None:
    tokenizer = byte_tokenizer()
    turns = (Turn("user", "Correct it.", "He go."), Turn("assistant", "He goes."))
    one = (
        Renderer(Template("alpaca", ALPACA), tokenizer)
        .conversations([Conversation(turns)], "answer")[0]
        .parts[-1]
    )
    assert tokenizer.decode(one.ids) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nCorrect it.\n\n### Input:\nHe go.\n\n"
        "### Response:\nHe goes.<|end|>"
    )


@pytest.mark.parametrize("template", [CHATML, CHAT_TEMPLATE])
def test_the_bases_own_template_gives_transformers_tokens(template: str) -> None:
    tokenizer = chat_tokenizer(template.replace("<|end|>", "<|im_end|>"))
    renderer = Renderer(choose_template("auto", tokenizer, "b")[0], tokenizer)
    for conversation, answers in ((ONE, "Red.<|im_end|>"), (TWO, "Red.<|im_end|>Blue<|im_end|>")):
        one = renderer.conversations([conversation], "answer")[0].parts[-1]
        messages = [{"role": t.role, "content": t.content} for t in conversation.turns]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert one.ids == whole[: len(one.ids)]
        assert tokenizer.decode(whole[len(one.ids) :]).strip() == ""  # what stands behind the last end
        assert _read_text(one, tokenizer) == answers
        asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        assert renderer.prompts([conversation.asked]) == [asked]
        assert one.ids[: len(asked)] == asked


def test_an_input_is_joined_where_the_template_has_no_place_for_it() -> None:
    tokenizer = chat_tokenizer()
    turns = (Turn("user", "Correct it.", "He go."), Turn("assistant", "x"))
    pieces = Template("base", CHATML).pieces(turns, tokenizer)
    assert pieces[0].text == "<|im_start|>user\nCorrect it.\n\nHe go.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("loss", ["answer", "all"])
def test_a_template_that_writes_earlier_answers_otherwise_teaches_each_as_it_is_asked(loss: Any) -> None:
    tokenizer = chat_tokenizer(REASONING)
    renderer = Renderer(Template("base", REASONING), tokenizer)
    found = renderer.conversations([TWO, ONE], loss)
    assert [(len(one.parts), one.unread) for one in found] == [(2, 0), (1, 0)]
    thoughts = "<think>\n\n</think>\n\n"
    messages = [{"role": t.role, "content": t.content} for t in TWO.turns]
    for part, until, answer in zip(found[0].parts, (3, 5), ("Red.", "Blue"), strict=True):
        whole = tokenizer.apply_chat_template(messages[:until], return_dict=True)["input_ids"]
        assert part.ids == whole[: len(part.ids)]
        asked = tokenizer.apply_chat_template(
            messages[: until - 1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert renderer.prompts([TWO.turns[: until - 1]]) == [asked]
        assert part.ids[: len(asked)] == asked
        expected = f"{thoughts}{answer}<|im_end|>"
        if loss == "all" and until == 5:  # the whole text, once
            assert part.read == [False] + [True] * (len(part.ids) - 1)
        else:
            assert _read_text(part, tokenizer) == expected


def test_answers_that_stay_as_they_are_are_learnt_in_one_copy() -> None:
    """Two answers before the last user's turn; thoughts behind it alone, as Qwen3 has them."""
    template = REASONING.replace("loop.last", "m.content.startswith('T')")
    keeps = Renderer(Template("base", template), chat_tokenizer(template))
    assert len(keeps.conversations([TWO], "answer")[0].parts) == 1
    turns = [ASKED, Turn("assistant", "A"), ASKED, Turn("assistant", "B"), ASKED, Turn("assistant", "C")]
    only = (  # the first answer is written otherwise once two more follow
        "{% for m in messages %}{{ m.role + ':' + m.content }}"
        "{% if loop.index0 == 1 and messages | length > 4 %}{{ '(old)' }}{% endif %}"
        "{{ '<|im_end|>' if m.role == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = chat_tokenizer(only)
    found = Renderer(Template("base", only), tokenizer).conversations([Conversation(tuple(turns))], "answer")[
        0
    ]
    assert [_read_text(part, tokenizer) for part in found.parts] == ["A<|im_end|>B<|im_end|>", "C<|im_end|>"]


def test_answers_that_can_t_be_told_apart_are_counted() -> None:
    hiding = (  # a prompt with an answer before it says so, an answer that is the last one does not
        "{{ 'first:' if add_generation_prompt and messages | length == 2 else '' }}"
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = chat_tokenizer(hiding)
    found = Renderer(Template("base", hiding), tokenizer).conversations([TWO], "answer")[0]
    assert (len(found.parts), found.unread) == (1, 1)
    assert _read_text(found.parts[0], tokenizer) == "Blue<|im_end|>"


def test_a_template_that_hides_the_border_is_refused() -> None:
    tokenizer = chat_tokenizer()
    hiding = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}ANSWER:{% endif %}"
    )
    with pytest.raises(ValueError, match=r"asked and what it answers can't be told apart.*template=alpaca"):
        Template("given", hiding).pieces(ONE.turns, tokenizer)
    refusing = "{{ raise_exception('no system here') }}"
    with pytest.raises(ValueError, match=r"can.t render it \(no system here\)"):
        Template("base", refusing).pieces(ONE.turns, tokenizer)


def test_tokens_never_merge_across_the_border() -> None:
    tokenizer = merging_tokenizer()
    renderer = Renderer(Template("alpaca", ALPACA), tokenizer)
    merged = Conversation((ASKED, Turn("assistant", "x!")))
    one = renderer.conversations([merged], "answer")[0].parts[-1]
    asked = renderer.prompts([merged.asked])[0]
    assert one.ids[: len(asked)] == asked
    assert _read_text(one, tokenizer) == "x!</s>"
    whole = tokenizer(tokenizer.decode(one.ids[1:]), add_special_tokens=False)["input_ids"]
    assert len(whole) == len(one.ids) - 2  # in one, "\nx" is a single token


def test_the_tokenizers_marks_stand_before_alpaca_and_texts_and_not_twice_before_a_chat() -> None:
    tokenizer = merging_tokenizer()
    begin = tokenizer.bos_token_id
    alpaca = Renderer(Template("alpaca", ALPACA), tokenizer)
    assert alpaca.conversations([ONE], "answer")[0].parts[-1].ids.count(begin) == 1
    assert alpaca.texts(["abc"])[0].ids == [
        begin,
        *tokenizer("abc", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    own = Template("base", "{{ bos_token }}" + CHAT_TEMPLATE.replace("<|end|>", "</s>"))
    assert Renderer(own, tokenizer).conversations([ONE], "answer")[0].parts[-1].ids.count(begin) == 1


def test_no_template_joins_prompt_and_answer() -> None:
    tokenizer = byte_tokenizer()
    renderer = Renderer(Template("none"), tokenizer)
    one = renderer.conversations([ONE], "answer")[0].parts[-1]
    assert tokenizer.decode(one.ids) == "Name a colour.Red.<|end|>"
    assert _read_text(one, tokenizer) == "Red.<|end|>"
    with pytest.raises(ValueError, match="several turns needs a template"):
        renderer.conversations([TWO], "answer")


def test_an_answer_without_an_end_in_the_template_gets_the_end_of_text() -> None:
    tokenizer = byte_tokenizer()
    endless = CHAT_TEMPLATE.replace("'<|end|>' if m.role == 'assistant' else ''", "'.\n'")
    one = Renderer(Template("given", endless), tokenizer).conversations([ONE], "answer")[0].parts[-1]
    assert _read_text(one, tokenizer) == "Red..\n<|end|>"


def test_the_whole_text_as_loss() -> None:
    tokenizer = byte_tokenizer()
    one = Renderer(Template("none"), tokenizer).conversations([ONE], "all")[0].parts[-1]
    assert one.read == [False] + [True] * (len(one.ids) - 1)
    text = Renderer(Template("none"), tokenizer).texts(["hello"])[0]
    assert (text.read, text.ids[-1]) == ([False] + [True] * 5, tokenizer.eos_token_id)


def test_labels_are_shifted_once() -> None:
    assert next_labels(Rendered([5, 6, 7, 8], [False, False, True, True])) == [NOT_READ, 7, 8, NOT_READ]


def test_cuts() -> None:
    one = Rendered(list(range(10)), [False] * 6 + [True] * 4, lead=1)
    assert one.cut(10, "left") is one
    left = one.cut(6, "left")
    assert (left.ids, left.read) == ([0, 5, 6, 7, 8, 9], [False, False, True, True, True, True])
    right = one.cut(7, "right")
    assert (right.ids, right.read) == (list(range(7)), [False] * 6 + [True])
    assert not any(one.cut(6, "right").read)
    deep = one.cut(3, "left")  # the answer itself is cut: what is left has nothing before its first token
    assert (deep.ids, deep.read) == ([0, 8, 9], [False, False, True])


@pytest.mark.parametrize("length", [2, 3, 7, 10, 11, 12])
@pytest.mark.parametrize("most", [2, 4, 10, 11])
def test_blocks_foretell_every_token_once(length: int, most: int) -> None:
    one = Rendered(list(range(length)), [False] + [True] * (length - 1))
    blocks = one.blocks(most)
    assert max(len(block.ids) for block in blocks) <= most
    told = [token for block in blocks for token in next_labels(block) if token != NOT_READ]
    assert told == list(range(1, length))


def test_which_template_is_chosen(tmp_path: Path) -> None:
    chatting, plain = chat_tokenizer(), byte_tokenizer()
    assert choose_template("auto", chatting, "b") == (Template("base", CHATML), "b has one", None)
    alpaca, reason, warning = choose_template("auto", plain, "b")
    assert (alpaca.origin, reason) == ("alpaca", "b has no chat template")
    assert warning is not None
    assert "not the base's own (Alpaca's layout)" in warning
    own, _, said = choose_template("alpaca", chatting, "b")
    assert own.origin == "alpaca"
    assert "b was trained with a chat template of its own" in str(said)
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML, encoding="utf-8")
    given, _, said = choose_template(str(file), chatting, "b")
    assert (given, said) == (Template("given", CHATML), None)
    file.write_text("{% for", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.jinja can't be read as a template in Jinja"):
        choose_template(str(file), plain, "b")
    with pytest.raises(
        ConfigError, match="template is 'alpca'; expected auto, base, alpaca, none, or a file"
    ):
        choose_template("alpca", plain, "b")
    with pytest.raises(ConfigError, match="b has no chat template of its own"):
        choose_template("base", plain, "b")
    assert Template.from_dict(given.to_dict()) == given


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"no end-of-text token \(eos_token\)"):
        Renderer(Template("none"), tokenizer)
