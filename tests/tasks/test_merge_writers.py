"""veneer merge of language models: PEFT's own merge, tied embeddings, templates, and what transformers then writes."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from reference.causal import CHAT_TEMPLATE, causal_base
from small_writers import GOLDEN, peft_writer, written_writer
from veneer.errors import AdapterError, DriftError, UserMistake
from veneer.models import content_hash
from veneer.tasks import replayed
from veneer.tasks.combined import combine_adapters
from veneer.tasks.exported import export_adapter
from veneer.tasks.loading import load
from veneer.tasks.merged import merge_adapter
from veneer.tasks.templates import Template
from veneer.tasks.writing import load_writer

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "gpt2-words": ("gpt2", {"target_modules": ["c_attn", "wte"]}),
    "llama": ("llama", {}),
    "qwen2-tied": ("qwen2", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "qwen2-output": ("qwen2", {"target_modules": ["q_proj", "lm_head"]}),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value"], "use_rslora": True}),
}


def answered(folder: Path, prompt: str) -> str:
    """What the model writes, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**asked, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_is_pefts_and_writes_the_same(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    base = causal_base(tmp_path / "base", family, max_length=400, begins=family == "llama")
    before = content_hash(base), sorted(file.name for file in base.iterdir())
    adapter = written_writer(tmp_path / "adapter", base, **options)
    done = merge_adapter(adapter, tmp_path / "out")
    assert (done.dtype, done.pooling, done.native, done.warnings) == ("float32", None, True, ())
    assert (done.drift.texts, done.drift.changed) == (len(GOLDEN), 0)
    assert done.drift.largest < 1e-3  # fp32, losses of about ten
    assert (content_hash(base), sorted(file.name for file in base.iterdir())) == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's on tied weights
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        theirs = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
    again = transformers.AutoModelForCausalLM.from_pretrained(done.path)
    compared = 0
    for key, tensor in again.state_dict().items():
        if case == "gpt2-words" and key == "lm_head.weight":
            continue  # PEFT changes the output layer with the embedding that it is tied to
        if case == "qwen2-output" and key == "model.embed_tokens.weight":
            continue
        assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
        compared += 1
    assert compared > 15
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == (case in ("gpt2", "qwen2-tied"))
    (wanted,) = load_writer(adapter, precision="fp32").generate(["Say hi"], max_new_tokens=8)
    assert answered(done.path, "Say hi") == wanted.text
    (same,) = load_writer(base=str(done.path), precision="fp32").generate(["Say hi"], max_new_tokens=8)
    assert same == wanted


@pytest.mark.parametrize("template", [None, Template("base", CHAT_TEMPLATE), Template("none")])
def test_the_code_in_the_readme_writes_what_the_adapter_writes(
    template: Template | None, tmp_path: Path
) -> None:
    own = CHAT_TEMPLATE if template is not None and template.origin == "base" else None
    base = causal_base(tmp_path / "base", "gpt2", template=own, max_length=400)
    adapter = written_writer(tmp_path / "adapter", base, template=template)
    done = merge_adapter(adapter, tmp_path / "out")
    page = (done.path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-generation" in page
    code = page.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(done.path))
    code = (
        code.replace("what is asked", "Say hi").replace("the text that goes on", "Say hi").replace("128", "8")
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    (wanted,) = load_writer(adapter, precision="fp32").generate(["Say hi"], max_new_tokens=8)
    assert out.getvalue() == wanted.text + "\n"


def test_a_bf16_base_stays_bf16(tmp_path: Path) -> None:
    base = causal_base(tmp_path / "base", "llama", dtype=torch.bfloat16, max_length=400)
    done = merge_adapter(written_writer(tmp_path / "adapter", base), tmp_path / "out")
    assert done.dtype == "bfloat16"
    tensors = load_file(done.path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 1e-4 < done.drift.largest < 2.5


def test_a_folder_of_peft(tmp_path: Path) -> None:
    base = causal_base(tmp_path / "base", "llama")
    done = merge_adapter(peft_writer(tmp_path / "theirs", base), tmp_path / "out")
    assert (done.drift.texts, done.drift.changed) == (4, 0)
    assert done.drift.largest < 1e-3
    assert transformers.AutoTokenizer.from_pretrained(done.path).chat_template is None


def test_a_model_that_drifts_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = causal_base(tmp_path / "base", "gpt2", max_length=400)
    adapter = written_writer(tmp_path / "adapter", base, target_modules=["c_attn"])
    real = replayed._values
    seen: list[int] = []

    def moved(outputs: Any) -> Any:
        seen.append(1)
        return real(outputs) + (0.5 if len(seen) == 2 else 0.0)

    monkeypatch.setattr(replayed, "_values", moved)
    with pytest.raises(
        DriftError, match=r"The merged model does not answer as the adapter does.*differ by 5.00e-01"
    ):
        merge_adapter(adapter, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "base"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({key: value + 0.1 for key, value in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(DriftError, match="does not answer as it did when it was stored"):
        merge_adapter(adapter, tmp_path / "out")


def test_exported_to_peft_it_writes_the_same_there(tmp_path: Path) -> None:
    base = causal_base(tmp_path / "base", "gpt2", max_length=400)
    adapter = written_writer(
        tmp_path / "adapter", base, target_modules=["c_attn"], qkv_slices=["q", "v"], rank_pattern={}
    )
    done = export_adapter(adapter, tmp_path / "peft", format="peft")
    assert done.files == ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert (done.drift, done.warnings) == (None, ())
    assert "pipeline_tag: text-generation" in (done.path / "README.md").read_text(encoding="utf-8")
    writer = load_writer(adapter, precision="fp32")
    ids = torch.tensor([writer.ids("Say hi")])
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(model, str(done.path)).eval()
    with torch.no_grad():
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
    (wanted,) = writer.generate(["Say hi"], max_new_tokens=8)
    found = out[0, ids.shape[1] :].tolist()
    assert tuple(token for token in found if token != 256) == wanted.ids
    with pytest.raises(UserMistake, match="format=onnx works for classification"):
        export_adapter(adapter, tmp_path / "onnx", format="onnx")


def test_combined_writers_are_the_weighted_sum(tmp_path: Path) -> None:
    base = causal_base(tmp_path / "base", "llama", max_length=400)
    folders = [str(written_writer(tmp_path / name, base, seed=seed)) for seed, name in enumerate("ab")]
    done = combine_adapters(tmp_path / "out", dict.fromkeys(folders, 0.5))
    again = load(done.path, precision="fp32")  # its golden answers are replayed
    assert again.facts is not None
    assert again.facts.golden is not None
    assert list(again.facts.golden.inputs) == list(GOLDEN)
    stored = [load_file(Path(folder) / "adapter_model.safetensors") for folder in [*folders, done.path]]
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    one, two, both = (part[key.format("B")].double() @ part[key.format("A")].double() for part in stored)
    assert_close(both * _scaling(done.path), 0.5 * 2.0 * (one + two), rtol=1e-5, atol=1e-6)
    page = (done.path / "README.md").read_text(encoding="utf-8")
    assert "veneer generate path/to/out" in page
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(model, str(done.path)).eval()
    ids = torch.tensor([load_writer(done.path, precision="fp32").ids("Say hi")])
    with torch.no_grad():
        assert_close(again.model(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    other = written_writer(tmp_path / "c", base, template=Template("none"))
    with pytest.raises(AdapterError, match=r"template: .*c has"):
        combine_adapters(tmp_path / "no", {folders[0]: 1.0, str(other): 1.0})


def _scaling(folder: Path) -> float:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return float(config["lora_alpha"] / config["r"])
