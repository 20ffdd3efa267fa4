"""veneer export: the ONNX graph by onnxruntime, and a plain PEFT folder by PEFT."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

from bases import tiny_bert, tiny_gpt2
from every_task import ENTRIES, Entry
from small_adapters import LABELS, TEXTS, written
from small_runs import no_pictures
from veneer.errors import DriftError, MissingExtraError, UserMistake
from veneer.tasks import exported_texts
from veneer.tasks.exported import export_adapter
from veneer.tasks.loading import load
from veneer.training.config import TrainConfig
from veneer.training.run import train

PAIRED = ("the first text", "the second text")
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in _PACKAGES),
    reason="the extra onnx is not installed: pip install 'veneer[onnx]'",
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with mean pooling, as sentence encoders are tuned."""
    place = tmp_path_factory.mktemp("bert")
    return written(place / "adapter", tiny_bert(place / "base"), pooling="mean", multi_label=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpt2")
    base = tiny_gpt2(place / "base")
    return written(place / "adapter", base, target_modules=["c_attn"], qkv_slices=["q", "v"])


@needs_onnx
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_graph_answers_as_the_adapter(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    adapter = request.getfixturevalue(kind)
    done = export_adapter(adapter, tmp_path / "out", format="onnx")
    assert done.drift is not None
    assert (done.drift.texts, done.drift.changed) == (len(TEXTS), 0)
    assert done.drift.largest < 1e-5  # fp32 logits of size one
    assert {"model.onnx", "labels.json", "README.md", "tokenizer.json"} <= set(done.files)
    labels = json.loads((done.path / "labels.json").read_text(encoding="utf-8"))
    assert labels == {
        "labels": list(LABELS),
        "multi_label": kind == "bert",
        "threshold": 0.5 if kind == "bert" else None,
        "max_length": 24,
        "inputs": ["text"],
    }
    adapted = load(adapter, precision="fp32")
    session = onnxruntime.InferenceSession(str(done.path / "model.onnx"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.path)
    new = ["call me", "a good film, a great film, i love it and you", "money " * 40, "late"]
    for texts in (new[:1], new[1:3], new):  # other batches and lengths than the graph was traced with
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        given = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        (logits,) = session.run(None, given)
        chances = adapted.task.probabilities(logits)  # type: ignore[attr-defined]
        for row, answer in zip(chances, adapted.predict(texts), strict=True):
            assert_close(row.tolist(), list(answer["probabilities"].values()), rtol=0, atol=1e-5)
    code = (
        (done.path / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    )
    monkeypatch.chdir(done.path)
    said: list[Any] = []
    exec(compile(code.replace("the text to classify", new[1]), "README.md", "exec"), {"print": said.append})
    (answer,) = adapted.predict([new[1]])
    assert said == [answer["labels"] if kind == "bert" else answer["label"]]


@needs_onnx
def test_a_graph_that_drifts_is_not_left_behind(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_texts, "write_graph", lambda path, *_, **__: path.write_bytes(b""))
    monkeypatch.setattr(exported_texts, "_run", lambda _, replay, __: replay.outputs + np.float32(np.nan))
    with pytest.raises(DriftError, match="The ONNX graph does not answer as the adapter does"):
        export_adapter(bert, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_it_says_what_to_install(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else real(name, *more)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'veneer\[onnx\]'"):
        export_adapter(bert, tmp_path / "out", format="onnx")


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_peft_folder_is_peft_and_nothing_else(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    adapter = request.getfixturevalue(kind)
    done = export_adapter(adapter, tmp_path / "out", format="peft")
    assert done.files == ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert (done.drift, bool(done.warnings)) == (None, kind == "bert")
    adapted = load(adapter, precision="fp32")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        adapted.base.folder, num_labels=len(LABELS), pad_token_id=adapted.base.model.config.pad_token_id
    )
    model = peft.PeftModel.from_pretrained(base, str(done.path)).eval()
    stored = load_file(done.path / "adapter_model.safetensors")
    head = "classifier" if kind == "bert" else "score"
    assert_close(
        stored[f"base_model.model.{head}.weight"], base.get_submodule(head).modules_to_save["default"].weight
    )
    if kind == "gpt2":  # the slices are an ordinary adapter of rank 2 r for PEFT
        ids = torch.tensor(adapted.encode(TEXTS[:1]))
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert adapted.facts is not None
        assert adapted.facts.golden is not None
        assert_close(logits, torch.tensor(adapted.facts.golden.outputs[:1]), rtol=0, atol=1e-5)
        assert stored["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (8, 32)


def test_the_code_for_peft_answers_as_the_adapter(bert: Path, tmp_path: Path) -> None:
    done = export_adapter(bert, tmp_path / "out", format="peft")
    page = (done.path / "README.md").read_text(encoding="utf-8")
    assert "The head reads the mean" in page
    code = page.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(done.path))
    said: list[Any] = []
    exec(compile(code.replace("the text to classify", TEXTS[2]), "README.md", "exec"), {"print": said.append})
    assert said == [load(bert, precision="fp32").predict([TEXTS[2]])[0]["labels"]]


def test_what_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="is the adapter itself"):
        export_adapter(bert, bert, format="peft", overwrite=True)
    with pytest.raises(UserMistake, match="format='gguf' is not known"):
        export_adapter(bert, tmp_path / "out", format="gguf")  # type: ignore[arg-type]
    done = export_adapter(bert, tmp_path / "out", format="peft")
    with pytest.raises(UserMistake, match="holds an adapter already"):
        export_adapter(bert, done.path, format="peft")
    assert export_adapter(bert, done.path, format="peft", overwrite=True).files == done.files


@needs_onnx
@pytest.mark.parametrize("name", ["numbers", "pairs", "similar pairs"])
def test_the_graph_of_a_trained_task_answers_as_the_adapter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the code of its README.md, which is all that a stranger has."""
    no_pictures(monkeypatch)
    entry = ENTRIES[name]
    path = trained(entry, tmp_path)
    done = export_adapter(path, tmp_path / "onnx", format="onnx")
    assert done.drift is not None
    assert (done.drift.texts, done.drift.changed) == (8, 0)
    assert done.drift.largest < 1e-4  # fp32; numbers up to thirty
    code = (
        (done.path / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    )
    asked = entry.inputs[0]
    texts = (asked,) if isinstance(asked, str) else tuple(asked.values())
    for blank, text in zip(("the text to classify",) if len(texts) == 1 else PAIRED, texts, strict=True):
        assert blank in code
        assert ("token_type_ids" in code) == (len(texts) == 2)
        code = code.replace(blank, text)
    monkeypatch.chdir(done.path)
    said: list[Any] = []
    exec(compile(code, "README.md", "exec"), {"print": said.append})
    adapted = load(path, precision="fp32")
    (answer,) = adapted.predict([asked])
    expected = answer[adapted.task.answer_keys[0]]
    assert said == [pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected]


@needs_onnx
def test_answers_to_questions_have_no_graph_and_their_peft_folder_is_read_as_peft_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pictures(monkeypatch)
    entry = ENTRIES["answers"]
    path = trained(entry, tmp_path)
    with pytest.raises(
        UserMistake, match="works for classification, regression and entities; this adapter is for"
    ):
        export_adapter(path, tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()
    (said,) = export_adapter(path, tmp_path / "peft", format="peft").warnings
    assert "PEFT's own class for answers (0.21) drops" in said
    encoded = load(path, precision="fp32").encode_inputs(entry.inputs)
    base = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert encoded.segments is not None
    ids, types = (
        torch.as_tensor(np.asarray(part[0]).astype(np.int64))[None] for part in (encoded, encoded.segments)
    )
    with torch.no_grad():
        theirs = model(input_ids=ids, token_type_ids=types)
        typed = model.base_model(input_ids=ids, token_type_ids=types)
    for folder, expected in ((tmp_path / "peft", theirs), (path, typed)):
        ours = load(folder, precision="fp32")
        found = ours.outputs_of(ours.encode_inputs(entry.inputs))[0]
        wanted = torch.stack([expected.start_logits, expected.end_logits], -1)[0]
        assert_close(torch.as_tensor(found), wanted, rtol=0, atol=1e-4)
    assert float((theirs.start_logits - typed.start_logits).abs().max()) > 1e-3


def trained(entry: Entry, folder: Path) -> Path:
    """An adapter of an entry, trained for an epoch on a base whose tokenizer gives token types, in `folder`/base."""
    source, base = entry.write(folder), entry.base(folder / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    given: dict[str, Any] = {
        "data": {"source": str(source)}, "base": str(base), "epochs": 1, "precision": "fp32", "baselines": False,
    }  # fmt: skip
    return train(TrainConfig.parse(given), out=folder / "adapter").path
