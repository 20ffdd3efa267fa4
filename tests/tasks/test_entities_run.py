"""An adapter of entities from training to the programs that read it: PEFT both ways, merged, and as an ONNX graph."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from entity_cases import entity_base, write_conll

from veneer import TrainConfig, load, train
from veneer.errors import DataError, DriftError
from veneer.tasks import exported_entities
from veneer.tasks.adapted import Adapted
from veneer.tasks.evaluating import evaluate
from veneer.tasks.exported import export_adapter
from veneer.tasks.merged import merge_adapter

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="the extra onnx is not installed: pip install 'veneer[onnx]'",
)
TOKENS = ["n1", "the", "New", "York", "in", "Paul", "'s", "Rome"]
FP32 = 1e-5  # logits of size one, sums in another order


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("entities")


@pytest.fixture(scope="module")
def adapters(place: Path) -> dict[str, Path]:
    """An encoder and a decoder."""
    found = {}
    (place / "data").mkdir()
    write_conll(place / "data" / "my.train.conll", 50)
    write_conll(place / "data" / "my.dev.conll", 15, seed=1)
    write_conll(place / "data" / "my.test.conll", 20, seed=2)
    for family in ("BERT", "GPT-2"):
        base = entity_base(place / family, family, lively=False)
        settings = {
            "data": {"source": str(place / "data")}, "base": str(base), "epochs": 16, "batch_size": 8,
            "learning_rate": 1e-2, "precision": "fp32", "device": "cpu",
        }  # fmt: skip
        found[family] = train(TrainConfig.parse(settings), out=place / f"adapter {family}").path
    return found


def numbers(adapted: Adapted, tokens: list[str]) -> np.ndarray[Any, Any]:
    """(W, K) the logits of each word."""
    encoded = adapted.encode_inputs([{"tokens": json.dumps(tokens)}])
    return adapted.outputs_of(encoded).values  # type: ignore[union-attr]


def by_transformers(model: Any, tokenizer: Any, tokens: list[str]) -> np.ndarray[Any, Any]:
    """(W, K) by a model of transformers, at the first token of each word."""
    text, starts = " ".join(tokens), np.cumsum([0, *(len(word) + 1 for word in tokens)])[:-1]
    batch = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    ends = batch.pop("offset_mapping")[0][:, 1].numpy()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0].numpy()
    return logits[[int(np.flatnonzero(ends > start)[0]) for start in starts]]


@pytest.mark.parametrize("family", ["BERT", "GPT-2"])
def test_peft_reads_what_we_write(adapters: dict[str, Path], family: str) -> None:
    adapted = load(adapters[family], precision="fp32")
    assert adapted.facts is not None
    assert adapted.facts.metrics["test"]["f1"] > 0.5  # it has learnt something to be compared
    told = json.loads((adapters[family] / "adapter_config.json").read_text())
    assert told["task_type"] == "TOKEN_CLS"
    base = transformers.AutoModelForTokenClassification.from_pretrained(adapted.base.folder, num_labels=5)
    model = peft.PeftModel.from_pretrained(base, str(adapters[family])).eval()
    theirs = by_transformers(model, adapted.base.tokenizer, TOKENS)
    np.testing.assert_allclose(numbers(adapted, TOKENS), theirs, rtol=0, atol=FP32)
    if family == "BERT":  # the code of the model card says the labels that we say
        page = (adapters[family] / "README.md").read_text(encoding="utf-8")
        assert said_by(page, adapters[family]) == expected(adapted)


def test_we_read_what_peft_writes(adapters: dict[str, Path], tmp_path: Path) -> None:
    ours = load(adapters["BERT"], precision="fp32")
    base = transformers.AutoModelForTokenClassification.from_pretrained(ours.base.folder, num_labels=3)
    config = peft.LoraConfig(
        target_modules=["query", "dense"], task_type="TOKEN_CLS", init_lora_weights=False
    )
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(str(tmp_path))
    found = load(tmp_path, base=str(ours.base.folder), precision="fp32")
    assert found.task.facts()["labels"] == ["O", "LABEL_1", "LABEL_2"]
    expected = by_transformers(theirs, ours.base.tokenizer, TOKENS)
    np.testing.assert_allclose(numbers(found, TOKENS), expected, rtol=0, atol=FP32)
    (answer,) = found.predict([" ".join(TOKENS)])
    assert {entity["label"] for entity in answer["entities"]} <= {"LABEL_1", "LABEL_2"}


def said_by(page: str, folder: Path) -> list[tuple[str, str]]:
    """What the Python of a page prints for `TOKENS`: words and labels."""
    code = page.partition("```python\n")[2].partition("```")[0]
    code = code.replace("path/to/this/folder", str(folder)).replace(
        "the text to read , as words", " ".join(TOKENS)
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return [tuple(line.split()) for line in out.getvalue().splitlines()]  # type: ignore[misc]


def expected(adapted: Adapted) -> list[tuple[str, str]]:
    labels = adapted.task.head.labels
    return [(word, labels[row.argmax()]) for word, row in zip(TOKENS, numbers(adapted, TOKENS), strict=True)]


@pytest.mark.parametrize("family", ["BERT", "GPT-2"])
def test_a_merged_model_is_transformers_own(adapters: dict[str, Path], family: str, tmp_path: Path) -> None:
    adapted = load(adapters[family], precision="fp32")
    done = merge_adapter(adapters[family], tmp_path / "merged")
    assert (done.native, done.pooling, done.drift.changed) == (True, None, 0)
    model = transformers.AutoModelForTokenClassification.from_pretrained(done.path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.path)
    np.testing.assert_allclose(
        by_transformers(model, tokenizer, TOKENS), numbers(adapted, TOKENS), rtol=0, atol=FP32
    )
    assert tuple(model.config.id2label.values()) == adapted.task.head.labels


@needs_onnx
@pytest.mark.parametrize("family", ["BERT", "GPT-2"])
def test_the_graph_says_what_the_adapter_says(
    adapters: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    adapted = load(adapters[family], precision="fp32")
    done = export_adapter(adapters[family], tmp_path / "onnx", format="onnx")
    assert done.drift is not None
    assert (done.drift.texts, done.drift.changed) == (8, 0)
    assert done.drift.largest < FP32
    told = json.loads((done.path / "labels.json").read_text(encoding="utf-8"))
    assert told == {"labels": ["O", "B-loc", "I-loc", "B-per", "I-per"], "words": "edges", "max_length": 64}
    session = onnxruntime.InferenceSession(str(done.path / "model.onnx"))
    for length in (3, 40):  # other lengths than the graph was traced with
        ids = adapted.encode_inputs([{"tokens": json.dumps((TOKENS * 6)[:length])}])
        given = {
            "input_ids": np.asarray(ids[0], np.int64)[None], "attention_mask": np.ones((1, ids.lengths[0]), np.int64)
        }  # fmt: skip
        (logits,) = session.run(None, given)
        read = ids.targets[0] == 0  # type: ignore[index]
        if len(ids) == 1:
            np.testing.assert_allclose(logits[0][read], adapted.outputs_of(ids)[0], rtol=0, atol=FP32)
    monkeypatch.chdir(done.path)
    page = (done.path / "README.md").read_text(encoding="utf-8")
    assert said_by(page, done.path) == expected(adapted)


@needs_onnx
def test_a_graph_that_drifts_is_not_left_behind(
    adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_entities, "graph_runner", lambda *_: _nonsense)
    with pytest.raises(DriftError, match="The ONNX graph does not answer as the adapter does"):
        export_adapter(adapters["BERT"], tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


def _nonsense(texts: Any) -> np.ndarray[Any, Any]:
    return np.full((len(texts), max(map(len, texts)), 5), np.nan, np.float32)


def test_what_is_measured_and_written(adapters: dict[str, Path], place: Path, tmp_path: Path) -> None:
    adapter = adapters["BERT"]
    adapted = load(adapter, precision="fp32")
    assert adapted.facts is not None
    told = adapted.facts.metrics["test"]
    assert told["n"] == 20
    assert {row["label"] for row in told["per_type"]} == {"loc", "per"}
    assert adapted.facts.data["sizes"] == {"train": 50, "validation": 15, "test": 20}
    assert adapted.facts.baselines[0]["name"] == "a list of the training words"
    found = evaluate(adapted, place / "data" / "my.test.conll")
    assert found.metrics.to_json()["f1"] == pytest.approx(told["f1"], abs=1e-9)
    folder = evaluate(adapted, place / "data")
    assert folder.metrics.to_json()["f1"] == pytest.approx(told["f1"], abs=1e-9)
    report = (adapter / "report.html").read_text(encoding="utf-8")
    for title in ("Each type", "What went wrong", "How the words were read"):
        assert title in report
    other = tmp_path / "other.conll"
    other.write_text("Rome\tB-city\n")
    with pytest.raises(DataError, match=r"marks 'city'; this adapter knows loc, per"):
        evaluate(adapted, other)
