"""veneer combine: one adapter folder out of several, against the dense sum of their products."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

from bases import tiny_bert
from small_adapters import TEXTS, written
from veneer.adapter import read_adapter
from veneer.errors import AdapterError, ConfigError, UserMistake
from veneer.tasks.combined import combine_adapters
from veneer.tasks.loading import load

QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one base and the same labels, of different rank, scaling and targets."""
    folder = tmp_path_factory.mktemp("combine")
    tiny_bert(folder / "base")
    written(folder / "a", folder / "base", seed=1)
    more = {"r": 2, "lora_alpha": 16, "use_rslora": True, "target_modules": ["query", "key"]}
    written(folder / "b", folder / "base", seed=2, max_length=16, **more)
    return folder


def product(folder: Path, layer: str = QUERY) -> torch.Tensor:
    """scaling · B A of a folder of one rank, float64; zero where the layer has no adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    if f"{layer}.lora_A.weight" not in tensors:
        return torch.zeros(32, 32, dtype=torch.float64)
    A, B = (tensors[f"{layer}.lora_{x}.weight"].double() for x in "AB")
    r = A.shape[0]
    alpha = next((v for k, v in config["alpha_pattern"].items() if layer.endswith(k)), config["lora_alpha"])
    return alpha / (r**0.5 if config["use_rslora"] else r) * (B @ A)


@pytest.mark.parametrize("projection", ["query", "key", "value"])
def test_the_folder_is_the_sum(projection: str, place: Path, tmp_path: Path) -> None:
    weights = {str(place / "a"): 0.7, str(place / "b"): -0.4}
    done = combine_adapters(tmp_path / "out", weights, heads=str(place / "b"))
    layer = QUERY.replace("query", projection)
    wanted = 0.7 * product(place / "a", layer) - 0.4 * product(place / "b", layer)
    assert_close(product(done.path, layer), wanted, rtol=1e-5, atol=1e-6)
    assert done.made.error == 0.0
    folder = read_adapter(done.path)
    assert folder.facts is not None
    assert folder.facts.max_length == 16
    assert folder.facts.data["combined"]["adapters"] == {"a": 0.7, "b": -0.4}
    head = "base_model.model.classifier.weight"
    assert_close(folder.tensors[head], read_adapter(place / "b").tensors[head], rtol=0, atol=0)


def test_it_loads_with_its_own_golden_answers_and_in_peft(place: Path, tmp_path: Path) -> None:
    weights = {str(place / "a"): 1.0, str(place / "b"): 0.5}
    done = combine_adapters(tmp_path / "out", weights, method="svd", r=3, heads="mean")
    assert 0.0 < done.made.error < 1.0
    adapted = load(done.path, precision="fp32")  # replays them
    assert adapted.facts is not None
    assert adapted.facts.golden is not None
    assert adapted.facts.golden.inputs == TEXTS
    base = transformers.AutoModelForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, str(done.path)).eval()
    ids = torch.tensor(adapted.encode(TEXTS[:1]))
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert_close(logits, torch.tensor(adapted.facts.golden.outputs[:1]), rtol=0, atol=1e-5)
    assert "| a | 1 |" in (done.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_ties_and_dare_by_their_names(method: Any, place: Path, tmp_path: Path) -> None:
    weights = {str(place / "a"): 1.0, str(place / "b"): 1.0}
    done = combine_adapters(tmp_path / "x", weights, method=method, density=0.5, seed=3, heads="mean")
    again = combine_adapters(tmp_path / "y", weights, method=method, density=0.5, seed=3, heads="mean")
    assert 0.0 < done.made.error < 1.0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (done.path / name).read_bytes() == (again.path / name).read_bytes()


def test_heads_that_differ_need_a_choice(place: Path, tmp_path: Path) -> None:
    weights = {str(place / "a"): 1.0, str(place / "b"): 1.0}
    with pytest.raises(ConfigError, match=r"classifier was trained in 'a' and in 'b', and differs"):
        combine_adapters(tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_belong_together(place: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "c", place / "base", labels=("no", "yes", "maybe"), pooling="mean")
    with pytest.raises(AdapterError, match="different questions") as caught:
        combine_adapters(tmp_path / "out", {str(place / "a"): 1.0, str(other): 1.0}, heads="mean")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["labels", "pooling"]
    two = written(tmp_path / "two", place / "base", labels=("no", "yes"))
    with pytest.raises(AdapterError, match="different questions") as caught:
        combine_adapters(tmp_path / "out", {str(place / "a"): 1.0, str(two): 1.0}, heads="mean")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["labels"]
    (two / "veneer.json").unlink()  # as PEFT's folders, which say nothing of labels
    with pytest.raises(AdapterError, match=r"two does not fit.*\n  - .*classifier.bias: shape \(2,\)"):
        combine_adapters(tmp_path / "out", {str(place / "a"): 1.0, str(two): 1.0}, heads="mean")
    tiny_bert(tmp_path / "base", seed=5)
    stranger = written(tmp_path / "d", tmp_path / "base")
    with pytest.raises(AdapterError, match=r"base: .*d has sha256:.*a has sha256:"):
        combine_adapters(tmp_path / "out", {str(place / "a"): 1.0, str(stranger): 1.0}, heads="mean")


def test_what_is_refused(place: Path, tmp_path: Path) -> None:
    both = {str(place / "a"): 1.0, str(place / "b"): 1.0}
    with pytest.raises(UserMistake, match="two or more are needed"):
        combine_adapters(tmp_path / "out", {str(place / "a"): 1.0})
    with pytest.raises(UserMistake, match="is one of the adapters to combine"):
        combine_adapters(place / "a", both, overwrite=True)
    with pytest.raises(UserMistake, match="Give overwrite=True"):
        combine_adapters(place / "a", both)
