"""The adapter folder: written whole, read strictly, the same to PEFT in both directions.

Tolerance of logits: 1e-5, fp32, as the issue asks.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from small_runs import config, no_pictures, two_files
from veneer import files
from veneer.adapter import Facts, read_adapter, write_adapter
from veneer.errors import (
    AdapterError,
    BaseError,
    DriftError,
    UnsupportedOptionError,
    UserMistake,
    VeneerError,
)
from veneer.tasks.adapted import Adapted
from veneer.tasks.golden import replay
from veneer.tasks.loading import load
from veneer.training.run import train

TEXTS = ["win a free prize now", "thanks", "the film is great and you love it, the film is great", "call 77"]
POOLED = {"gpt2": "last", "bert": "first", "sentence": "mean"}
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
TENSORS = "adapter_model.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter for each way of pooling."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        for kind in POOLED:
            train(config(place, kind=kind), out=place / "adapters" / kind)
    return {kind: place / "adapters" / kind for kind in POOLED}


@pytest.fixture
def copied(trained: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the BERT adapter to damage."""
    return Path(shutil.copytree(trained["bert"], tmp_path / "copy"))


def logits(adapted: Adapted, texts: list[str] = TEXTS) -> torch.Tensor:
    from veneer.tasks.encoding import TokenLists

    return torch.from_numpy(adapted.outputs_of(TokenLists(adapted.encode(texts))))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def test_it_holds_what_design_says(trained: dict[str, Path]) -> None:
    names = {p.name for p in trained["bert"].iterdir()}
    assert {"adapter_config.json", TENSORS, "veneer.json", "config.yaml", "README.md", "report.html"} <= names
    facts = read_adapter(trained["bert"]).facts
    assert facts is not None
    assert facts.golden is not None
    assert len(facts.golden.inputs) == 8
    assert facts.base.content_hash.startswith("sha256:")
    assert {"test", "validation"} <= facts.metrics.keys()


@pytest.mark.parametrize("kind", POOLED)
def test_loaded_it_pools_as_trained_and_answers_as_stored(trained: dict[str, Path], kind: str) -> None:
    adapted = load(trained[kind], precision="fp32")
    assert adapted.facts is not None
    assert adapted.facts.golden is not None
    assert adapted.base.pooling == POOLED[kind]
    golden = adapted.facts.golden
    found = logits(adapted, [str(text) for text in golden.inputs])
    torch.testing.assert_close(found, torch.tensor(golden.outputs), **EXACT)
    assert [a["label"] in ("ham", "spam") for a in adapted.predict(TEXTS)] == [True] * 4


@pytest.mark.parametrize("kind", POOLED)
def test_in_bf16_it_answers_nearly_the_same(trained: dict[str, Path], kind: str) -> None:
    """8 bits of mantissa in the body, fp32 in pooler, adapter and head."""
    adapted = load(trained[kind], precision="bf16")
    assert adapted.precision.name == "bf16"
    kinds = {name: p.dtype for name, p in adapted.model.named_parameters()}
    assert {d for n, d in kinds.items() if "pooler" in n or p_is_head(n)} == {torch.float32}
    assert torch.bfloat16 in kinds.values()
    expected = logits(load(trained[kind], precision="fp32"))
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", POOLED)
def test_in_bf16_padded_it_answers_nearly_the_same(trained: dict[str, Path], kind: str) -> None:
    """transformers' own forward, whose pooler would meet states in bf16; the head runs it in fp32 on what is read."""
    adapted = load(trained[kind], precision="bf16", mode="padded")
    expected = logits(load(trained[kind], precision="fp32"))
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=0.05)


def p_is_head(name: str) -> bool:
    return name.startswith(("classifier", "score"))


# --- PEFT as the oracle ---------------------------------------------------------------------------------------------


def test_peft_loads_ours_and_gives_the_same_logits(trained: dict[str, Path]) -> None:
    for kind in ("gpt2", "bert"):
        folder = trained[kind]
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder.parents[1] / kind)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        model.base_model.model.config.pad_token_id = tokenizer.pad_token_id
        batch = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            expected = model(**batch).logits
        torch.testing.assert_close(logits(load(folder, precision="fp32")), expected, **EXACT)


def code_of(folder: Path) -> str:
    """The Python code that the model card prints for people without Veneer."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    found = [block for block in blocks if "PeftModel" in block]
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("kind", POOLED)
def test_the_code_of_the_model_card_gives_the_same_logits(
    trained: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained[kind]
    code = code_of(folder).replace("path/to/this/folder", str(folder))
    code = code.replace('["the text to classify"]', repr(TEXTS[2:3]))
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    expected = logits(load(folder, precision="fp32"), TEXTS[2:3])
    torch.testing.assert_close(names["logits"], expected, **EXACT)
    answer = load(folder, precision="fp32").predict(TEXTS[2:3])[0]
    assert answer["label"] in capsys.readouterr().out


def test_peft_refuses_a_pooling_that_it_would_not_compute(trained: dict[str, Path]) -> None:
    assert json.loads((trained["sentence"] / "adapter_config.json").read_text())["task_type"] is None
    with pytest.raises(ValueError, match="task type"):
        peft.AutoPeftModelForSequenceClassification.from_pretrained(trained["sentence"])


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_folder_that_peft_wrote_gives_the_same_logits(
    trained: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    base = trained[kind].parents[1] / kind
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    targets = ["query", "value"] if kind == "bert" else ["c_attn", "c_fc"]
    options = {"target_modules": targets, "fan_in_fan_out": kind == "gpt2", "init_lora_weights": False}
    theirs = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=3, **options)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    batch = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**batch).logits
    adapted = load(tmp_path / "theirs", precision="fp32")
    torch.testing.assert_close(logits(adapted), expected, **EXACT)
    assert adapted.facts is None
    assert adapted.predict(TEXTS[:1])[0]["label"] == f"LABEL_{int(expected[0].argmax())}"


def test_a_folder_of_peft_without_a_head_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained["bert"].parents[1] / "bert")
    theirs = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(AdapterError, match="holds no classification head"):
        load(tmp_path / "theirs")


@pytest.mark.parametrize(("kind", "refused"), [("sentence", True), ("bert", False)])
def test_a_folder_that_lost_its_veneer_json(
    trained: dict[str, Path], kind: str, refused: bool, tmp_path: Path
) -> None:
    """Read without it, mean pooling would be the first token's: wrong answers. Where transformers' class reads the same
    way, the logits are the same, and only the labels' names are lost."""
    shutil.copytree(trained[kind], tmp_path / "lost")
    (tmp_path / "lost" / "veneer.json").unlink()
    if refused:
        with pytest.raises(AdapterError, match=r"lacks its veneer\.json"):
            load(tmp_path / "lost")
        return
    expected = logits(load(trained[kind], precision="fp32"))
    torch.testing.assert_close(logits(load(tmp_path / "lost", precision="fp32")), expected, **EXACT)


def test_a_number_that_was_damaged_too_little_for_the_golden_inputs_is_seen(copied: Path) -> None:
    path = copied / TENSORS
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the lowest bit of a number
    path.write_bytes(data)
    with pytest.raises(DriftError, match="is not the file that was written with"):
        load(copied)
    assert load(copied, verify=False).predict(["a text"])


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["task_facts"]["labels"].reverse(),
        lambda facts: facts["task_facts"]["labels"].__setitem__(0, "fine"),
        lambda facts: facts["metrics"]["test"].update(accuracy=1.5),
        lambda facts: facts.update(max_length=facts["max_length"] + 1),
    ],
    ids=["labels exchanged", "a label renamed", "a figure", "a length"],
)
def test_what_was_edited_by_hand_is_not_believed(
    copied: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """No stored answer holds a label's name: the hash does."""
    path = copied / "veneer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(facts.items())), indent=7, ensure_ascii=False))
    assert load(copied).predict(["a text"])  # the same values in another layout
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(DriftError, match=r"veneer\.json was edited.*verify=False"):
        load(copied)
    assert load(copied, verify=False).predict(["a text"])
    facts["facts_hash"] = None
    path.write_text(json.dumps(facts))
    assert load(copied).facts is not None  # folders of before the hash was kept


# --- strict reading -------------------------------------------------------------------------------------------------


def test_every_fault_of_the_tensors_is_listed_at_once(copied: Path) -> None:
    names = sorted(load_file(copied / TENSORS))
    missing, misshapen = [name for name in names if "lora_A" in name][:2]

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[missing]
        tensors[misshapen] = torch.zeros(3, 5)
        tensors["base_model.model.something.else"] = torch.zeros(1)

    change_tensors(copied, damage)
    with pytest.raises(AdapterError) as caught:
        load(copied)
    assert len(caught.value.faults) == 3
    for part in (missing, misshapen, "base_model.model.something.else"):
        assert part in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_named_with_their_number(copied: Path, bad: float) -> None:
    name = next(name for name in load_file(copied / TENSORS) if "lora_B" in name)

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[:3] = bad

    change_tensors(copied, damage)
    with pytest.raises(AdapterError, match="holds 3 values that are not finite") as caught:
        load(copied)
    assert name in str(caught.value)


def test_damaged_files_are_all_listed(copied: Path) -> None:
    (copied / "adapter_config.json").write_text("{")
    (copied / TENSORS).write_bytes(b"not tensors")
    change_json(copied / "veneer.json", format="one", colour="red")
    with pytest.raises(AdapterError) as caught:
        read_adapter(copied)
    text = str(caught.value)
    assert len(caught.value.faults) == 3
    assert "adapter_config.json is not valid JSON" in text
    assert "adapter_model.safetensors is not a whole safetensors file" in text
    assert "veneer.json" in text
    assert "colour" in text


def test_missing_files_are_all_listed(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    assert caught.value.faults == ("adapter_config.json is missing", f"{TENSORS} is missing")


def test_a_cut_tensor_file_is_refused(copied: Path) -> None:
    data = (copied / TENSORS).read_bytes()
    for end in (len(data) - 10, 20, 0):
        (copied / TENSORS).write_bytes(data[:end])
        with pytest.raises(AdapterError, match="not a whole safetensors file"):
            load(copied)
    (copied / TENSORS).write_bytes(struct.pack("<Q", 2**60) + data[8:])
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        load(copied)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "adapter_model.pt"])
def test_pickles_are_refused_unread(copied: Path, name: str) -> None:
    (copied / TENSORS).unlink()
    (copied / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(AdapterError, match="which can run code when it is opened"):
        load(copied)


def test_an_option_that_is_not_computed_is_refused_by_name(copied: Path) -> None:
    change_json(copied / "adapter_config.json", use_qalora=True)
    with pytest.raises(UnsupportedOptionError, match="use_qalora"):
        load(copied)


def test_a_newer_format_is_refused(copied: Path) -> None:
    change_json(copied / "veneer.json", format=99)
    with pytest.raises(AdapterError, match="has format 99, this Veneer reads up to 1: upgrade Veneer"):
        read_adapter(copied)


def test_a_changed_base_is_refused(trained: dict[str, Path], copied: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(trained["bert"].parents[1] / "bert", tmp_path / "other"))
    weights = load_file(base / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BaseError, match=r"is not the base of this adapter .*: the hash of its weights is sha256:"
    ):
        load(copied, base=str(base))


def test_another_tokenizer_is_refused(trained: dict[str, Path], copied: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(trained["bert"].parents[1] / "bert", tmp_path / "other"))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BaseError, match="the hash of its tokenizer is sha256:"):
        load(copied, base=str(base))


def test_a_base_that_is_gone_is_named(copied: Path) -> None:
    change_json(copied / "adapter_config.json", base_model_name_or_path="./gone")
    with pytest.raises(BaseError, match=r"belongs to the base \./gone, .* no folder \./gone.* with base"):
        load(copied)
    change_json(copied / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(AdapterError, match="does not say which base it belongs to"):
        load(copied)


def test_golden_answers_find_a_slightly_changed_tensor(copied: Path) -> None:
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.classifier.weight"].add_(0.02)

    load(copied)
    change_tensors(copied, nudge)
    with pytest.raises(DriftError, match="does not answer as it did when it was stored: golden input"):
        load(copied)
    assert load(copied, verify=False).predict(TEXTS)


def test_golden_answers_find_a_number_that_is_none(trained: dict[str, Path], monkeypatch: Any) -> None:
    adapted = load(trained["bert"])
    assert adapted.facts is not None
    golden = adapted.facts.golden
    assert golden is not None
    plain = Adapted.outputs_of

    def outputs_of(self: Adapted, *args: Any, **rest: Any) -> np.ndarray:
        return np.full_like(plain(self, *args, **rest), np.nan)

    monkeypatch.setattr(Adapted, "outputs_of", outputs_of)
    with pytest.raises(DriftError):
        replay(adapted, golden)


def test_golden_answers_of_another_shape_are_a_fault_of_the_folder(trained: dict[str, Path]) -> None:
    adapted = load(trained["bert"])
    assert adapted.facts is not None
    assert adapted.facts.golden is not None
    golden = adapted.facts.golden.replace(outputs=tuple((0.0,) * 5 for _ in range(8)))
    with pytest.raises(AdapterError, match=r"golden outputs of the sizes \[5, 5,"):
        replay(adapted, golden)


# --- writing --------------------------------------------------------------------------------------------------------


def parts(folder: Path) -> dict[str, Any]:
    found = read_adapter(folder)
    assert isinstance(found.facts, Facts)
    return {"peft_config": found.peft_config, "tensors": found.tensors, "facts": found.facts}


def test_the_same_parts_make_the_same_bytes(copied: Path, tmp_path: Path) -> None:
    given = parts(copied)
    for name in ("one", "two"):
        write_adapter(tmp_path / name, **given)
        given["tensors"] = dict(reversed(given["tensors"].items()))
        given["peft_config"] = dict(reversed(given["peft_config"].items()))
    assert two_files(tmp_path / "one") == two_files(tmp_path / "two") == two_files(copied)
    assert (tmp_path / "one" / "veneer.json").read_bytes() == (copied / "veneer.json").read_bytes()


def test_a_full_disk_in_the_middle_leaves_the_old_adapter(copied: Path, monkeypatch: Any) -> None:
    given = parts(copied)
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    plain, calls = files.os.fsync, []

    def second_fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    monkeypatch.setattr(files.os, "fsync", second_fails)
    with pytest.raises(VeneerError, match=r"the disk is full\. What stood there before is untouched"):
        write_adapter(copied, **given, overwrite=True)
    assert len(calls) == 2
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    assert [p.name for p in copied.parent.iterdir()] == [copied.name]


def test_nothing_is_overwritten_unasked(copied: Path, tmp_path: Path) -> None:
    given = parts(copied)
    with pytest.raises(UserMistake, match=r"holds an adapter already\. Give overwrite=True"):
        write_adapter(copied, **given)
    write_adapter(copied, **given, overwrite=True, extra_files={"note.txt": "x", "raw": b"\0"})
    assert {p.name for p in copied.iterdir()} == {
        "adapter_config.json",
        TENSORS,
        "veneer.json",
        "note.txt",
        "raw",
    }
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserMistake, match="exists and is not an adapter folder"):
        write_adapter(foreign, **given, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserMistake, match="exists and is not an adapter folder"):
        write_adapter(tmp_path / "file", **given, overwrite=True)
    (tmp_path / "empty").mkdir()
    write_adapter(tmp_path / "empty", **given)
    assert two_files(tmp_path / "empty") == two_files(copied)
