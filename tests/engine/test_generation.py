"""Generation against transformers' own `generate`, `LogitsProcessor`s and decoders, on small random models."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import GenerationConfig
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from reference.causal import CAUSAL, VOCABULARY, byte_tokenizer, causal_model
from veneer.engine.generation import Memory, Sampling, StopText, TextGenerator, TextPieces
from veneer.engine.generation.running import RunningBatch, padding_fault, sharing_fault
from veneer.engine.generation.sampling import choose, processed, random_of
from veneer.engine.generation.shared import SharedBeginnings
from veneer.errors import BaseError, ConfigError, DataError
from veneer.lora import LoraConfig, adapter_parameters, attach, disabled

END = 256
PROMPTS = [[5, 200, 31], [7], list(range(40, 57)), [99, 98, 97, 96, 95, 94, 93], [12, 13, 250]]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: causal_model(family) for family in CAUSAL}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def theirs(model: Any, prompt: list[int], **options: Any) -> list[int]:
    """transformers' greedy answer to one prompt, without its end token."""
    settings = GenerationConfig(do_sample=False, eos_token_id=END, pad_token_id=0, **options)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    found = out[0, len(prompt) :].tolist()
    return found[: found.index(END)] if END in found else found


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_is_transformers_one_by_one_and_in_a_batch(
    family: str, models: dict[str, Any], tokenizer: Any
) -> None:
    generator = TextGenerator(models[family], tokenizer, limit=96)
    assert generator.alone_because is None
    wanted = [theirs(models[family], prompt, max_new_tokens=24) for prompt in PROMPTS]
    together = generator.generate(PROMPTS, Sampling(max_new_tokens=24))
    alone = [generator.generate([prompt], Sampling(max_new_tokens=24))[0] for prompt in PROMPTS]
    assert [list(answer.ids) for answer in together] == wanted
    assert together == alone
    assert len({tuple(ids) for ids in wanted}) >= len(PROMPTS) - 1
    for answer in together:
        assert answer.finish == ("end" if len(answer.ids) < 24 else "length")
        assert answer.text == tokenizer.decode(list(answer.ids), skip_special_tokens=True)


@pytest.mark.parametrize("family", CAUSAL)
def test_logits_in_a_batch_are_those_of_each_text_without_a_cache(
    family: str, models: dict[str, Any]
) -> None:
    """Left padding, cache, removal of rows: every step's logits against the plain forward."""
    model, texts = models[family], [list(prompt) for prompt in PROMPTS]
    running, places = RunningBatch(model, texts), list(range(len(texts)))
    draw = random.Random(0)
    for step in range(9):
        with torch.no_grad():
            plain = [model(input_ids=torch.tensor([texts[place]])).logits[0, -1] for place in places]
        assert_close(running.logits, torch.stack(plain), rtol=1e-4, atol=1e-4)  # fp32, logits of about ten
        if step in (3, 6):
            gone = draw.randrange(len(places))
            places.pop(gone)
            running.keep([place for place in range(len(places) + 1) if place != gone])
        new = [draw.randrange(VOCABULARY) for _ in places]
        for place, token in zip(places, new, strict=True):
            texts[place].append(token)
        running.advance(new)
    assert len(places) == len(PROMPTS) - 2


def test_transformers_is_never_left_to_guess_what_is_padding(models: dict[str, Any]) -> None:
    """A turn that begins with the end token, which stands for padding too, has a mask: of ones."""
    model, memory = models[next(iter(CAUSAL))], Memory()
    masks: list[Any] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    try:
        memory.read(model, [5, 9, 31])
        memory.read(model, [5, 9, 31, END, 7])
    finally:
        hook.remove()
    assert [mask.shape for mask in masks] == [(1, 3), (1, 5)]
    assert all(bool(mask.all()) for mask in masks)


SYSTEM = [(11 * place + 3) % 256 for place in range(40)]  # longer than any window of the families


@pytest.mark.parametrize("family", CAUSAL)
def test_a_common_beginning_is_read_once_and_changes_nothing(
    family: str, models: dict[str, Any], tokenizer: Any
) -> None:
    """Logits of every step against the plain forward, answers against transformers, and how much is computed."""
    model = models[family]
    texts = [[*SYSTEM, *prompt] for prompt in PROMPTS]
    assert sharing_fault(model) is None
    begun = SharedBeginnings(model, texts).of(texts)
    assert begun is not None
    assert list(begun.ids) == SYSTEM
    running = RunningBatch(model, texts, begun)
    draw = random.Random(0)
    for step in range(4):
        with torch.no_grad():
            plain = [model(input_ids=torch.tensor([text])).logits[0, -1] for text in texts]
        assert_close(running.logits, torch.stack(plain), rtol=1e-4, atol=1e-4)  # fp32, logits of about ten
        if step == 2:
            running.keep([0, 2, 3])
            texts = [texts[place] for place in (0, 2, 3)]
        new = [draw.randrange(VOCABULARY) for _ in texts]
        texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
        running.advance(new)

    shapes: list[tuple[int, ...]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, given, named: shapes.append(tuple((given[0] if given else named["input_ids"]).shape)),
        with_kwargs=True,
    )
    generator = TextGenerator(model, tokenizer, limit=96)
    assert (generator.alone_because, generator.whole_because) == (None, None)
    asked = [[*SYSTEM, *prompt] for prompt in PROMPTS]
    shapes.clear()
    together = generator.generate(asked, Sampling(max_new_tokens=8))
    assert shapes[:2] == [(1, len(SYSTEM)), (len(PROMPTS), max(map(len, PROMPTS)))]
    wanted = [theirs(model, prompt, max_new_tokens=8) for prompt in asked]
    assert [list(answer.ids) for answer in together] == wanted
    assert [generator.generate([prompt], Sampling(max_new_tokens=8))[0] for prompt in asked] == together
    model.base_model._forward_pre_hooks.clear()


def test_what_can_be_shared() -> None:
    model = causal_model("gpt2")
    assert (
        SharedBeginnings(model, [SYSTEM]).of([SYSTEM]) is None
    )  # one prompt has nothing in common with others
    same = SharedBeginnings(model, [SYSTEM, SYSTEM]).of([SYSTEM, SYSTEM])
    assert same is not None
    assert len(same.ids) == len(SYSTEM) - 1  # the last token is computed, for its logits
    short = [[*SYSTEM[:15], 1], [*SYSTEM[:15], 2]]
    assert SharedBeginnings(model, short).of(short) is None
    stranger = [[9] * 30, [8] * 30, [*SYSTEM, 1], [*SYSTEM, 2]]
    by_batch = SharedBeginnings(model, stranger)
    assert by_batch.of(stranger[:2]) is None
    found = by_batch.of(stranger[2:])
    assert found is not None
    assert by_batch.of(stranger[2:]) is not None
    assert SharedBeginnings(model, stranger, lambda: False).of(stranger[2:]) is None


def test_a_model_whose_cache_is_another_reads_each_text_whole(models: dict[str, Any], tokenizer: Any) -> None:
    model = copy.deepcopy(models["llama"])
    real = model.model.forward

    def forward(input_ids: Any = None, past_key_values: Any = None, **given: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length() == 0:
            given["position_ids"] = None
            input_ids = input_ids.flip(1)  # what is kept is not what stands there
        return real(input_ids=input_ids, past_key_values=past_key_values, **given)

    model.model.forward = forward
    assert "behind a common beginning its logits differ by" in str(sharing_fault(model))
    assert TextGenerator(model, tokenizer, limit=96).whole_because is not None


def test_a_model_that_padding_changes_is_found_and_answers_all_the_same(
    models: dict[str, Any], tokenizer: Any
) -> None:
    model = copy.deepcopy(models["llama"])
    real = model.forward

    def forward(input_ids: Any = None, past_key_values: Any = None, use_cache: Any = None, **_: Any) -> Any:
        return real(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    model.forward = forward  # neither mask nor positions: what stands on the left is read
    assert "differ by" in str(padding_fault(model))
    generator = TextGenerator(model, tokenizer, limit=96)
    assert generator.alone_because is not None
    answers = generator.generate(PROMPTS, Sampling(max_new_tokens=10))
    wanted = [theirs(models["llama"], prompt, max_new_tokens=10) for prompt in PROMPTS]
    assert [list(answer.ids) for answer in answers] == wanted


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_transformers(penalty: float, models: dict[str, Any], tokenizer: Any) -> None:
    generator = TextGenerator(models["gpt2"], tokenizer, limit=96)
    answers = generator.generate(PROMPTS, Sampling(max_new_tokens=16, repetition_penalty=penalty))
    wanted = [
        theirs(models["gpt2"], p, max_new_tokens=16, repetition_penalty=penalty) for p in PROMPTS
    ]  # one by one: in a batch theirs counts the padding as seen
    assert [list(answer.ids) for answer in answers] == wanted


@pytest.mark.parametrize("top_k", [None, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [None, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7])
def test_processed_logits_are_transformers_processors(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 60, generator=draw) * 3
    ids = torch.randint(0, 60, (4, 9), generator=draw)
    seen = torch.zeros(4, 60, dtype=torch.bool).scatter(1, ids, value=True)
    wanted = RepetitionPenaltyLogitsProcessor(1.2)(ids, logits)
    wanted = TemperatureLogitsWarper(temperature)(ids, wanted)
    wanted = wanted if top_k is None else TopKLogitsWarper(top_k)(ids, wanted)
    wanted = wanted if top_p is None else TopPLogitsWarper(top_p)(ids, wanted)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=1.2)
    found = processed(logits, sampling, seen)
    assert_close(found, wanted, rtol=1e-6, atol=0)


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]]))
    source, counts = random_of(0, 0), [0, 0, 0, 0]
    for _ in range(4000):
        counts[choose(logits, Sampling(temperature=1.0), [source])[0]] += 1
    assert counts[1] == 0
    for count, chance in zip(counts, (0.5, 0.0, 0.3, 0.2), strict=True):
        assert abs(count / 4000 - chance) < 4 * (0.25 / 4000) ** 0.5  # four standard errors
    first = [random_of(3, row).random() for row in (0, 1, 0)]
    assert first[0] == first[2] != first[1]


def test_a_sampled_answer_does_not_depend_on_its_neighbours(models: dict[str, Any], tokenizer: Any) -> None:
    generator = TextGenerator(models["qwen2"], tokenizer, limit=96)
    sampling = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=4)
    together = generator.generate(PROMPTS, sampling)
    alone = [generator.generate([p], sampling, rows=[row])[0] for row, p in enumerate(PROMPTS)]
    assert together == alone
    other = generator.generate(PROMPTS, sampling.replace(seed=5))
    assert [a.ids for a in other] != [a.ids for a in together]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_takes_part_and_can_be_switched_off(dtype: torch.dtype, tokenizer: Any) -> None:
    model = causal_model("llama")
    before = TextGenerator(model, tokenizer, limit=96).generate(PROMPTS)
    attach(model, LoraConfig(target_modules="all-linear"), seed=0)
    for name, parameter in adapter_parameters(model):
        parameter.data.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    generator = TextGenerator(model, tokenizer, limit=96)
    with_it = generator.generate(PROMPTS, Sampling(max_new_tokens=8))
    assert [list(a.ids) for a in with_it] != [list(a.ids)[:8] for a in before]
    if dtype == torch.float32:
        assert [list(a.ids) for a in with_it] == [theirs(model, p, max_new_tokens=8) for p in PROMPTS]
        with disabled(model):
            assert generator.generate(PROMPTS) == before
    else:  # bf16 rounds: the padded and the plain computation differ, and are held to the limit of padding_fault
        assert generator.alone_because is None


def test_an_answer_ends_for_four_reasons(models: dict[str, Any], tokenizer: Any) -> None:
    generator = TextGenerator(models["gpt2"], tokenizer, limit=24)
    (free,) = generator.generate([PROMPTS[0]], Sampling(max_new_tokens=10))
    assert (free.finish, len(free.ids), free.prompt_tokens) == ("length", 10, 3)
    (full,) = generator.generate([PROMPTS[0]], Sampling(max_new_tokens=1000))
    assert (full.finish, len(full.ids)) in (("context", 21), ("end", len(full.ids)))
    (ended,) = generator.generate([PROMPTS[0]], Sampling(stop_token_ids=(free.ids[4],)))
    assert ended.finish == "end"
    assert ended.ids == free.ids[: free.ids.index(free.ids[4])]
    special = TextGenerator(models["gpt2"], tokenizer, limit=24, stop_tokens=[free.ids[2]])
    assert len(special.generate([PROMPTS[0]])[0].ids) <= 2


def readable(tokenizer: Any, models: dict[str, Any]) -> TextGenerator:
    """A generator whose answers are printable: every other token is out of its reach."""
    model = copy.deepcopy(models["gpt2"])
    letters = tokenizer("abcdefgh \n", add_special_tokens=False)["input_ids"]
    bias = torch.full((VOCABULARY,), -1e9)
    bias[letters] = 0
    model.lm_head.bias = torch.nn.Parameter(bias)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return TextGenerator(model, tokenizer, limit=96)


def test_the_pieces_are_the_text_and_never_a_part_of_a_stop(models: dict[str, Any], tokenizer: Any) -> None:
    generator = readable(tokenizer, models)
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=1)
    whole = generator.generate(PROMPTS, sampling)
    pieces: dict[int, str] = dict.fromkeys(range(len(PROMPTS)), "")
    answers = {}
    for piece in generator.stream(PROMPTS, sampling):
        pieces[piece.row] += piece.text
        if piece.answer is not None:
            answers[piece.row] = piece.answer
    assert [answers[row] for row in range(len(PROMPTS))] == whole
    assert [pieces[row] for row in range(len(PROMPTS))] == [answer.text for answer in whole]
    stop = whole[0].text[5:8]
    (stopped,) = generator.generate([PROMPTS[0]], sampling.replace(stop=(stop, "never there")))
    assert (stopped.finish, stopped.text) == ("stop", whole[0].text[: whole[0].text.index(stop)])
    shown = "".join(p.text for p in generator.stream([PROMPTS[0]], sampling.replace(stop=(stop,))))
    assert shown == stopped.text


def test_a_special_token_as_stop_string_is_an_end(models: dict[str, Any], tokenizer: Any) -> None:
    generator = TextGenerator(models["gpt2"], tokenizer, limit=96)
    generator.stop_tokens = frozenset()
    ends, texts = generator._stops(Sampling(stop=("<|end|>", "x")))
    assert (ends, texts) == ({END}, ("x",))


@pytest.mark.parametrize("family", CAUSAL)
def test_a_conversation_that_is_remembered_answers_the_same(
    family: str, models: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, memory, read = TextGenerator(models[family], tokenizer, limit=96), Memory(), []
    real = RunningBatch._forward
    monkeypatch.setattr(
        RunningBatch,
        "_forward",
        lambda self, ids, places: read.append(ids.shape[1]) or real(self, ids, places),
    )
    history: list[int] = []
    last = "end"
    for _ in range(3):
        history += PROMPTS[2]
        wanted = generator.generate([history], Sampling(max_new_tokens=6))
        del read[:]
        found = [
            p.answer
            for p in generator.stream([history], Sampling(max_new_tokens=6), memory=memory)
            if p.answer
        ]
        assert found == wanted
        # only what is new: the question, and the answer's last token, which nothing had followed yet
        assert read[0] == len(PROMPTS[2]) + (last == "length")
        history, last = history + list(found[0].ids), found[0].finish
    other = [p.answer for p in generator.stream([PROMPTS[0]], memory=memory) if p.answer]
    assert other == generator.generate([PROMPTS[0]])
    assert len(memory) >= len(PROMPTS[0])


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_pieces_of_any_text_are_whole_characters(text: str) -> None:
    pieces = TextPieces(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    found = [pieces.push(byte) for byte in text.encode()]
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in found)
    assert "".join(found) + pieces.end() == text


@given(st.lists(st.integers(0, 255), max_size=40))
def test_pieces_of_any_bytes_are_the_text_of_all(ids: list[int]) -> None:
    tokenizer = byte_tokenizer()
    pieces = TextPieces(lambda some: tokenizer.decode(some))
    assert "".join([*(pieces.push(token) for token in ids), pieces.end()]) == tokenizer.decode(ids)


@settings(max_examples=300)
@given(
    st.text("ab ", max_size=30),
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_a_stop_string_does_not_depend_on_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    wanted = text[: min(ends)[1]] if ends else text
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stop, shown = StopText(stops), ""
    for start, end in itertools.pairwise(places):
        shown += stop.push(text[start:end])
        assert wanted.startswith(shown)
    assert shown + stop.end() == wanted
    assert (stop.stopped is not None) == bool(ends)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": -1}, "'temperature' is -1"),
        ({"top_p": 0.5}, "top_p = 0.5 has no effect at temperature 0"),
        ({"top_k": 5}, "top_k = 5 has no effect at temperature 0"),
        ({"top_p": 1.5, "temperature": 1}, "'top_p' is 1.5"),
        ({"stop": ("a", "")}, "an empty text stands everywhere"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0"),
        ({"max_tokens": 5}, "unknown key 'max_tokens'.*max_new_tokens"),
        ({"repetition_penalty": 0}, "'repetition_penalty' is 0"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Sampling.parse(given)


def test_a_model_without_a_key_value_cache_is_refused(tokenizer: Any) -> None:
    config = transformers.MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(BaseError, match="MambaForCausalLM keeps no key-value cache"):
        TextGenerator(transformers.MambaForCausalLM(config), tokenizer, limit=96)


def test_prompts_that_are_refused(models: dict[str, Any], tokenizer: Any) -> None:
    generator = TextGenerator(models["gpt2"], tokenizer, limit=10)
    with pytest.raises(DataError, match="prompt 2 has no token"):
        generator.generate([[1], []])
    with pytest.raises(DataError, match="prompt 1 has 10 tokens; the base reads 10 at most"):
        generator.generate([list(range(10))])
    with pytest.raises(ConfigError, match="stop_token_ids: 260 is no token"):
        generator.generate([[1]], Sampling(stop_token_ids=(260,)))
    assert generator.generate([]) == []
