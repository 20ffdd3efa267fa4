"""veneer merge: the model that is written, against PEFT's own merge and against plain transformers."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bases import tiny_bert, tiny_gpt2
from small_adapters import LABELS, TEXTS, written
from veneer.errors import BaseError, DriftError, UserMistake
from veneer.lora import LoraConfig, adapter_parameters, attach
from veneer.models import content_hash, load_base
from veneer.tasks import merged as merged_module
from veneer.tasks.loading import load
from veneer.tasks.merged import merge_adapter, merge_into_base_

CASES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "bert": (tiny_bert, {"pooling": "first"}),
    "bert-mean": (tiny_bert, {"pooling": "mean", "bias": "lora_only"}),
    "bert-dora": (tiny_bert, {"pooling": "first", "use_dora": True, "use_rslora": True}),
    "bert-words": (tiny_bert, {"pooling": "first", "target_modules": ["query", "word_embeddings"]}),
    "gpt2": (tiny_gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    "gpt2-slices": (tiny_gpt2, {"target_modules": ["c_attn"], "qkv_slices": ["q", "v"]}),
    "gpt2-pissa": (tiny_gpt2, {"target_modules": ["c_attn"], "init_lora_weights": "pissa"}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {make: make(place / make.__name__) for make in (tiny_bert, tiny_gpt2)}


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    theirs = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return dict(theirs.state_dict())


def answers(folder: Path) -> torch.Tensor:
    """Logits by transformers alone."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(TEXTS[:4]), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_is_pefts(case: str, bases: dict[Any, Path], tmp_path: Path) -> None:
    make, options = CASES[case]
    base = bases[make]
    before = content_hash(base), sorted(file.name for file in base.iterdir())
    adapter = written(tmp_path / "adapter", base, **options)
    done = merge_adapter(adapter, tmp_path / "out")
    assert (done.dtype, done.drift.texts, done.drift.changed) == ("float32", len(TEXTS), 0)
    assert done.drift.largest < 1e-5  # fp32 logits of size one
    ours, theirs = load_file(done.path / "model.safetensors"), merged_by_peft(base, adapter)
    assert ours.keys() == theirs.keys()
    newly_made = ".pooler." if done.pooling == "mean" else "nothing"  # random in either, and never read
    for key, tensor in ours.items():
        if newly_made not in key:
            assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    config = transformers.AutoConfig.from_pretrained(done.path)
    assert [config.id2label[i] for i in range(3)] == list(LABELS)
    assert (content_hash(base), sorted(file.name for file in base.iterdir())) == before
    wanted = load(adapter, precision="fp32").facts.golden.outputs  # type: ignore[union-attr]
    same = torch.allclose(answers(done.path), torch.tensor(wanted[:4]), atol=1e-4)
    assert same == done.native == (case != "bert-mean")
    assert bool(done.warnings) != done.native


def test_a_bf16_base_stays_bf16_and_is_summed_in_fp32(bases: dict[Any, Path], tmp_path: Path) -> None:
    base = tmp_path / "half"
    model = transformers.AutoModel.from_pretrained(bases[tiny_bert], dtype=torch.bfloat16)
    model.save_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(bases[tiny_bert]).save_pretrained(base)
    adapter = written(tmp_path / "adapter", base)
    done = merge_adapter(adapter, tmp_path / "out")
    assert done.dtype == "bfloat16"
    tensors = load_file(done.path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert transformers.AutoConfig.from_pretrained(done.path).dtype == torch.bfloat16
    place = "encoder.layer.1.attention.self.query"
    stored = load_file(adapter / "adapter_model.safetensors")
    A, B = (stored[f"base_model.model.bert.{place}.lora_{x}.weight"].double() for x in "AB")
    W = load_file(base / "model.safetensors")[f"{place}.weight"].double()
    wanted = (W + (8 / 4) * B @ A).to(torch.bfloat16)
    assert_close(tensors[f"bert.{place}.weight"], wanted, rtol=2**-8, atol=0)  # fp32 next to a rounding edge
    assert (tensors[f"bert.{place}.weight"] == wanted).float().mean() > 0.99
    assert 1e-5 < done.drift.largest < 0.1


def test_another_pooling_is_said_written_and_read_again(bases: dict[Any, Path], tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter", bases[tiny_bert], pooling="mean")
    done = merge_adapter(adapter, tmp_path / "out")
    assert (done.pooling, done.native) == ("mean", False)
    assert re.search(
        r"reads the mean.*transformers' own class reads another one.*1_Pooling", done.warnings[0]
    )
    assert "The head reads the mean" in (done.path / "README.md").read_text(encoding="utf-8")
    again = load_base(str(done.path), labels=LABELS)
    assert (again.pooling, again.max_length, again.new_parameters) == ("mean", 24, frozenset())


@pytest.mark.parametrize("case", ["bert", "bert-mean", "gpt2"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_code_in_the_readme_answers_as_the_adapter(
    case: str, multi_label: bool, bases: dict[Any, Path], tmp_path: Path
) -> None:
    make, options = CASES[case]
    adapter = written(tmp_path / "adapter", bases[make], multi_label=multi_label, **options)
    done = merge_adapter(adapter, tmp_path / "out")
    page = (done.path / "README.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    said = run_code(
        code.replace("path/to/this/folder", str(done.path)).replace("the text to classify", TEXTS[2])
    )
    (answer,) = load(adapter, precision="fp32").predict([TEXTS[2]])
    assert said == (str(answer["labels"]) if multi_label else answer["label"])


def run_code(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue().strip()


def test_a_folder_of_peft_without_golden_answers(bases: dict[Any, Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bases[tiny_bert], num_labels=2)
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(str(tmp_path / "peft"))
    done = merge_adapter(tmp_path / "peft", tmp_path / "out", base=str(bases[tiny_bert]))
    assert (done.native, done.drift.texts) == (True, 4)
    assert done.drift.largest < 1e-5


def test_what_is_not_overwritten(bases: dict[Any, Path], tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "models" / "base")
    adapter = written(tmp_path / "adapter", base)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserMistake, match="notes exists and is not a model folder"):
        merge_adapter(adapter, tmp_path / "notes", overwrite=True)
    for place in (base, bases[tiny_bert]):
        with pytest.raises(UserMistake, match=r"holds a model already\. Give overwrite=True"):
            merge_adapter(adapter, place)
    with pytest.raises(UserMistake, match="which the model is made of"):
        merge_adapter(adapter, base, overwrite=True)
    (tmp_path / "models" / "config.json").write_text("{}")
    with pytest.raises(UserMistake, match="which the model is made of"):
        merge_adapter(adapter, tmp_path / "models", overwrite=True)
    done = merge_adapter(adapter, tmp_path / "out")
    with pytest.raises(UserMistake, match="holds a model already"):
        merge_adapter(adapter, done.path)
    assert merge_adapter(adapter, done.path, overwrite=True).drift == done.drift


def test_a_model_that_drifts_is_not_left_behind(
    bases: dict[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = written(tmp_path / "adapter", bases[tiny_bert])
    real = merged_module.plain_logits
    monkeypatch.setattr(merged_module, "plain_logits", lambda *given: real(*given) + 0.1)
    with pytest.raises(
        DriftError, match=r"The merged model does not answer as the adapter does: golden input \d"
    ):
        merge_adapter(adapter, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]


def test_a_weight_beyond_half_precision_is_refused(bases: dict[Any, Path], tmp_path: Path) -> None:
    base = tmp_path / "half"
    transformers.AutoModel.from_pretrained(bases[tiny_bert], dtype=torch.float16).save_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(bases[tiny_bert]).save_pretrained(base)
    adapter = written(tmp_path / "adapter", base, golden=False)
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight"
    save_file(tensors | {key: tensors[key] * 1e6}, adapter / "adapter_model.safetensors")
    facts = json.loads((adapter / "veneer.json").read_text())
    (adapter / "veneer.json").write_text(json.dumps(facts | {"tensors_hash": None, "facts_hash": None}))
    with pytest.raises(
        BaseError, match=r"layer.0.attention.self.query.weight would not be finite in float16"
    ):
        merge_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [True, False])
def test_tied_embeddings_are_kept_right(words: bool, tmp_path: Path) -> None:
    """With an adapter on the word embeddings they are stored apart from the output layer, else still once."""
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=40,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    attach(model, LoraConfig(target_modules=["q_proj", *(["embed_tokens"] if words else [])]), seed=0)
    with torch.no_grad():
        for _, parameter in adapter_parameters(model):
            parameter.normal_(0.0, 0.3)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    merge_into_base_(SimpleNamespace(model=model, base=SimpleNamespace(name="llama")))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(again(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)
    assert again.config.tie_word_embeddings is not words
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is not words
