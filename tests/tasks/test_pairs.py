"""Two texts as one row of tokens, against transformers: the tokenizer's own form, its own cut, and its own classes.

Tolerance 2e-5 of the largest logit: fp32, packed sums in another order than padded ones, two layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from torch.testing import assert_close

from bases import WORDS, tiny_bert, tiny_gpt2
from veneer.errors import ConfigError, DataError
from veneer.lora import LoraConfig, adapter_parameters
from veneer.models import load_base
from veneer.models.forms import HeadSpec
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.base import packed_rows
from veneer.tasks.classification import Classification
from veneer.tasks.pairs import encode_pairs, pair_store, separator_of, shown_pair
from veneer.tasks.regression import Regression
from veneer.tasks.texts import PAIR, given_texts

DRAW = np.random.default_rng(0)
PAIRS = [
    (
        " ".join(DRAW.choice(WORDS, int(DRAW.integers(1, 9)))),
        " ".join(DRAW.choice(WORDS, int(DRAW.integers(1, 9)))),
    )
    for _ in range(7)
]


def roberta(folder: Path) -> Path:
    """A random RoBERTa with a tokenizer of bytes: <s> a </s></s> b </s>, no token types."""
    place = tiny_gpt2(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokenizer.add_special_tokens(
        {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "sep_token": "</s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
        }
    )
    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("</s>", "<s>")]
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        *ends, trim_offsets=True, add_prefix_space=False
    )
    tokenizer.save_pretrained(place)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=600, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None,
        type_vocab_size=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.RobertaModel(config).save_pretrained(place)
    return place


def bert(folder: Path) -> Path:
    """A random BERT whose tokenizer gives token types, as BERT's own does."""
    place = tiny_bert(folder)
    config = json.loads((place / "tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def long_gpt2(folder: Path) -> Path:
    return tiny_gpt2(folder, max_length=256)


FAMILIES = {"bert": bert, "roberta": roberta, "gpt2": long_gpt2}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, FAMILIES[request.param](tmp_path_factory.mktemp("pairs") / request.param)


def adapted_to(base: Path, number: bool, mode: Any = "auto") -> Adapted:
    """An adapter whose every number is drawn, on a head of two labels or of one number."""
    head = HeadSpec("sequence", ("number",), "regression") if number else HeadSpec("sequence", ("a", "b"))
    found = load_base(str(base), head=head)
    from veneer.models.heads import native_pooling

    found = found.with_pooling(native_pooling(found.model))
    task: Any = Regression(found.pooling, pair=True)
    if not number:
        task = Classification(("a", "b"), found.pooling, pair=True)
    lora = LoraConfig(r=4, target_modules="all-linear", modules_to_save=found.head)
    made = adapt(found, task, lora, precision="fp32", mode=mode)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for _, parameter in adapter_parameters(made.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return made


def padded(made: Adapted) -> dict[str, torch.Tensor]:
    """The pairs as transformers pads them for this model."""
    tokenizer = made.base.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    firsts, seconds = zip(*PAIRS, strict=True)
    return dict(tokenizer(list(firsts), list(seconds), padding=True, return_tensors="pt"))


@pytest.mark.parametrize("number", [False, True])
def test_packed_pairs_are_padded_ones_of_transformers(family: tuple[str, Path], number: bool) -> None:
    made = adapted_to(family[1], number)
    assert made.runner.mode == "packed"
    inputs = [dict(zip(PAIR, pair, strict=True)) for pair in PAIRS]
    encoded = made.encode_inputs(inputs)
    assert (encoded.segments is not None) == (family[0] == "bert")
    ours = torch.as_tensor(made.outputs_of(encoded))
    batch = padded(made)
    with torch.no_grad():
        theirs = made.model(**batch).logits
    assert_close(ours, theirs, rtol=0, atol=2e-5 * max(1.0, float(theirs.abs().max())))
    if family[0] == "bert":  # the token types count
        with torch.no_grad():
            without = made.model(
                **batch | {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}
            ).logits
        assert float((without - theirs).abs().max()) > 1e-2


def test_loss_and_gradients_of_numbers_are_those_of_transformers(family: tuple[str, Path]) -> None:
    made = adapted_to(family[1], number=True)
    targets = np.linspace(-1, 1, len(PAIRS)).astype(np.float32)
    weights = dict(adapter_parameters(made.model))
    encoded = made.encode_inputs([dict(zip(PAIR, pair, strict=True)) for pair in PAIRS])
    batch = packed_rows(encoded, np.arange(len(PAIRS)))
    wanted = made.task.collate(targets[list(batch.order)])
    loss = made.task.loss(made.outputs(batch, None, wanted), wanted, batch.layout)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
    made.model.zero_grad()
    theirs = made.model(**padded(made), labels=torch.as_tensor(targets)).loss
    theirs.backward()
    assert_close(loss, theirs, rtol=1e-5, atol=1e-5)
    assert set(ours) == {name for name, p in weights.items() if p.grad is not None}
    for name, p in weights.items():
        if p.grad is not None:
            assert_close(ours[name], p.grad, rtol=1e-3, atol=1e-4 * max(1.0, float(p.grad.abs().max())))


WORD = st.lists(st.sampled_from(WORDS), min_size=1, max_size=20).map(" ".join)


@given(pairs=st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4), room=st.integers(8, 30))
@settings(deadline=None, max_examples=25)
def test_the_cut_is_transformers_longest_first(
    family: tuple[str, Path], pairs: list[tuple[str, str]], room: int
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(family[1])
    found = encode_pairs(tokenizer, pairs, room)
    store, types = pair_store([pairs], tokenizer, room)
    for place, pair in enumerate(pairs):
        expected = tokenizer(*pair, truncation="longest_first", max_length=room)
        assert found.ids[place] == expected["input_ids"] == store[place].tolist()
        if types is not None:
            assert types[place].tolist() == expected["token_type_ids"]
        whole = tokenizer(*pair)["input_ids"]
        assert found.full_lengths[place] == store.full_lengths[place] == len(whole)
        shown = shown_pair(tokenizer, pair, room)
        assert len(shown) == len(whole)
        assert sum(token.read for token in shown) == len(expected["input_ids"])
    assert store.cut == sum(n > room for n in store.full_lengths)


def test_a_length_without_room_is_refused(family: tuple[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(family[1])
    with pytest.raises(ConfigError, match=r"max_length is 1, and \d special tokens of a pair"):
        encode_pairs(tokenizer, PAIRS, 1)
    assert separator_of(tokenizer) == (family[0] != "gpt2")


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            "a text",
            "input 3 gives 'text'; this adapter reads 'text' and 'text_pair'.* second one as 'text_pair'",
        ),
        ({"text": "a", "pair": "b"}, "input 3 gives 'text' and 'pair'"),
        ({"text": "a", "text_pair": 1}, "each of them a text"),
    ],
)
def test_an_input_without_both_texts_is_named(one: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        given_texts(one, PAIR, 2)
