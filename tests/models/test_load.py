"""Loading a base: nothing random but the head, nothing missing, limits and hashes as they are."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from bases import tiny_bert, tiny_gpt2
from veneer.errors import BaseError
from veneer.lora import LoraConfig, attach
from veneer.models import cast_frozen_, load_base, load_tokenizer
from veneer.models.load import tokenizer_hash

LABELS = ("no", "yes", "maybe")


def state(**options: Any) -> dict[str, torch.Tensor]:
    return dict(load_base(**options).model.state_dict())


def test_the_body_is_the_checkpoint_and_the_head_follows_the_seed(tmp_path: Path) -> None:
    folder = str(tiny_bert(tmp_path / "base"))
    torch.manual_seed(1)
    first = state(name=folder, labels=LABELS, seed=7)
    torch.manual_seed(2)
    again = state(name=folder, labels=LABELS, seed=7)
    other = state(name=folder, labels=LABELS, seed=8)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    differs = {name for name in first if not torch.equal(first[name], other[name])}
    assert differs == {"classifier.weight"}
    assert first["classifier.weight"].shape == (3, 32)


def test_loading_leaves_torchs_random_state_alone(tmp_path: Path) -> None:
    folder = str(tiny_bert(tmp_path / "base"))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_base(folder, labels=LABELS)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_what_a_base_says_of_itself(tmp_path: Path) -> None:
    bert = load_base(str(tiny_bert(tmp_path / "bert", max_length=48)), labels=LABELS)
    assert (bert.family, bert.causal, bert.pooling, bert.max_length) == ("bert", False, "first", 48)
    assert bert.head == ("classifier",)
    assert not bert.model.training
    assert {p.dtype for p in bert.model.parameters()} == {torch.float32}
    assert bert.model.config.id2label == dict(enumerate(LABELS))
    gpt2 = load_base(str(tiny_gpt2(tmp_path / "gpt2")), labels=LABELS, multi_label=True)
    assert (gpt2.family, gpt2.causal, gpt2.pooling, gpt2.head) == ("gpt2", True, "last", ("score",))
    assert gpt2.model.config.problem_type == "multi_label_classification"


def test_a_decoder_without_a_padding_token_gets_one(tmp_path: Path) -> None:
    base = load_base(str(tiny_gpt2(tmp_path / "gpt2")), labels=LABELS)
    assert base.tokenizer.pad_token_id is None
    assert base.model.config.pad_token_id == base.tokenizer.eos_token_id


def test_roberta_reads_two_tokens_less_than_it_has_positions(tmp_path: Path) -> None:
    """Its positions start at pad + 1: 40 positions are 38 tokens, and one more is an error in transformers."""
    folder = tiny_bert(tmp_path / "base", max_length=1000)
    config = RobertaConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    base = load_base(str(folder), labels=LABELS)
    assert base.max_length == 38
    model: Any = base.model
    assert model(torch.full((1, 38), 5)).logits.shape == (1, 3)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 39), 5))


@pytest.mark.parametrize(("limit", "expected"), [(12, 12), (500, 64), (None, 64)])
def test_a_sentence_encoders_own_limit_counts(tmp_path: Path, limit: int | None, expected: int) -> None:
    folder = tiny_bert(tmp_path / "base")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    assert load_base(str(folder), labels=LABELS).max_length == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_cls_token", "first"),
        ("pooling_mode_lasttoken", "last"),
        ("pooling_mode_max_tokens", "first"),
    ],
)
def test_pooling_as_sentence_transformers_wrote_it(tmp_path: Path, mode: str, expected: str) -> None:
    folder = tiny_bert(tmp_path / "base")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({mode: True}))
    assert load_base(str(folder), labels=LABELS).pooling == expected


def test_a_pooler_that_the_checkpoint_lacks_is_trained_with_the_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_bert(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "pooler" not in n},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    base = load_base(str(folder), labels=LABELS)
    assert base.head == ("classifier", "bert.pooler")
    assert base.with_pooling("mean").head == ("classifier",)
    assert base.with_pooling("mean").pooling == "mean"


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "more layers": (
        changed_config(num_hidden_layers=4),
        r"its weights do not fill the model; 32 parameters .* such as bert\.encoder\.layer\.2\.",
    ),
    "wider": (changed_config(hidden_size=64), "its weights do not fill the model; 35 parameters"),
    "no text model": (changed_config(model_type="clip"), "can't be loaded"),
    "no such model": (changed_config(model_type="nope"), "can't be loaded"),
    "config damaged": (lambda folder: (folder / "config.json").write_text("{") and None, "can't be loaded"),
    "weights cut": (cut, "not a whole safetensors file"),
    "no weights": (without("*.safetensors"), "holds no weights: expected model.safetensors"),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin") and None,
        "holds its weights as pickles .* save_pretrained",
    ),
    "no tokenizer": (without("tokenizer*"), "holds no tokenizer"),
    "half a tokenizer": (without("tokenizer.json"), "has no tokenizer that can be read"),
    "tokenizer damaged": (
        lambda folder: (folder / "tokenizer.json").write_text("{") and None,
        "has no tokenizer that can be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_base_is_an_error_that_names_it(tmp_path: Path, fault: str) -> None:
    folder = tiny_bert(tmp_path / "base")
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(BaseError, match=message) as caught:
        load_base(str(folder), labels=LABELS)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_tokenizers_hash_is_of_what_it_does(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "base")
    tokenizer = load_tokenizer(folder)
    fresh = tokenizer_hash(tokenizer)
    tokenizer(
        ["a long text", "short"], truncation=True, max_length=3, padding=True
    )  # leaves its settings behind
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_hash(tokenizer) == fresh
    tokenizer.save_pretrained(tmp_path / "copy")
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "copy")) == fresh
    other = load_tokenizer(tiny_bert(tmp_path / "other", words=["different"]))
    assert tokenizer_hash(other) != fresh
    tokenizer.add_tokens(["extra"])
    assert tokenizer_hash(tokenizer) != fresh


@pytest.mark.skipif(
    not Path("/proc/self/maps").is_file(), reason="the system does not list a process's mapped files"
)
def test_a_cast_base_holds_nothing_of_its_file(tmp_path: Path) -> None:
    """One fp32 tensor left in the mapped file keeps all of it in memory: half a gigabyte of a GPT-2."""
    base = load_base(str(tiny_gpt2(tmp_path / "base")), labels=LABELS)
    attach(base.model, LoraConfig(r=2, target_modules="all-linear", modules_to_save=base.head))
    file = str(base.folder / "model.safetensors")
    assert file in Path("/proc/self/maps").read_text(encoding="utf-8")
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    cast_frozen_(base.model, torch.bfloat16, keep=base.float32_modules)
    gc.collect()
    assert file not in Path("/proc/self/maps").read_text(encoding="utf-8")
    for name, p in base.model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name].to(p.dtype), rtol=0, atol=0)


def test_casting_leaves_trained_weights_heads_and_buffers_alone(tmp_path: Path) -> None:
    model = load_base(str(tiny_bert(tmp_path / "base")), labels=LABELS).model.requires_grad_(False)
    trained = model.get_parameter("bert.encoder.layer.0.output.dense.weight").requires_grad_(True)
    model.register_buffer("frequencies", torch.ones(3))
    cast_frozen_(model, torch.bfloat16, keep=("classifier",))
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    wide = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert wide == {"bert.encoder.layer.0.output.dense.weight", "classifier.weight", "classifier.bias"}
    assert trained.dtype == torch.float32
    assert model.get_buffer("frequencies").dtype == torch.float32
