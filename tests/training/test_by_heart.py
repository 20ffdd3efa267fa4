"""The whole path of instructions: learnt by heart, written by greedy generation, and loaded in PEFT.

The tests at full size are marked slow and run with `pytest -m slow tests/training/test_by_heart.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from instruction_cases import ROWS, instruction_file, writing_base
from small_runs import no_pictures
from veneer.data.config import DataConfig
from veneer.data.sources import Source
from veneer.engine import pack
from veneer.lora import LoraConfig, adapter_parameters, adapter_state_dict
from veneer.models import load_base
from veneer.models.forms import HeadSpec
from veneer.tasks.adapted import adapt
from veneer.tasks.evaluating import evaluate
from veneer.tasks.instruction_data import InstructionOptions, prepare
from veneer.tasks.instructions import Instructions
from veneer.tasks.loading import load
from veneer.tasks.rendered import NOT_READ
from veneer.tasks.templates import ALPACA, Template
from veneer.training.api import train

WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def test_a_random_base_learns_a_few_answers_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures(monkeypatch)
    base = writing_base(tmp_path / "base", spread=0.2)
    file = instruction_file(tmp_path / "rows.json")
    done = train(
        file, base=str(base), out=tmp_path / "adapter", epochs=110, batch_size=8, learning_rate=1e-2,
        lora={"r": 8}, precision="fp32", device="cpu", baselines=False, data=WHOLE,
    )  # fmt: skip
    assert done.facts.task == "instructions"
    assert any("Alpaca's layout" in warning for warning in done.facts.data["warnings"])
    adapted = load(done.path, precision="fp32")
    found = evaluate(adapted, file)
    assert found.metrics.to_json()["exact_match"] == 1.0
    assert found.metrics.to_json()["token_accuracy"] == 1.0
    asked = [{"instruction": row["instruction"], "input": row["input"]} for row in ROWS]
    assert [answer["answer"] for answer in adapted.predict(asked)] == [row["output"] for row in ROWS]
    _same_in_peft(done.path, base, adapted)


def _same_in_peft(folder: Path, base: Path, adapted: Any) -> None:
    """PEFT and transformers alone, by the code of the model card's kind: the same logits and the same answer."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["task_type"] == "CAUSAL_LM"
    assert not config["modules_to_save"]
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, peft.PeftModelForCausalLM)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    template = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))["task_facts"]["template"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say yes."}], chat_template=template["source"], tokenize=False
    )
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0]
        packed = pack([batch["input_ids"][0].numpy()])
        states = adapted.runner.hidden_states(packed)
        mine = adapted.model.get_output_embeddings()(states)
        written = model.generate(**batch, max_new_tokens=20, do_sample=False)
    torch.testing.assert_close(mine, logits, rtol=1e-4, atol=1e-4)  # fp32, two layers
    answer = tokenizer.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "Yes."


def _gpt2(folder: Path, shared: Path, **sizes: Any) -> Path:
    """GPT-2 with random weights and its own tokenizer; full size unless said otherwise."""
    config = transformers.GPT2Config(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "gpt2_tokenizer" / name, folder / name)
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.n_positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _spread_embeddings(folder: Path) -> None:
    """Make the embeddings five times as large, in place: tied to the frozen output layer, random ones of GPT-2's own
    size can't tell 50,257 tokens apart, so that no loss below 5 can be reached.
    """
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(5.0)
    model.save_pretrained(folder)


def _padded(encoded: Any, part: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and unshifted labels of some rows, padded on the right to the longest."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(np.asarray(encoded[int(row)], np.int64)) for row in part], batch_first=True
    )
    labels = torch.full_like(ids, NOT_READ)
    for place, row in enumerate(part):
        own = np.asarray(encoded.targets[int(row)], np.int64)
        labels[place, 1 : len(own)] = torch.from_numpy(own[:-1])
    lengths = torch.tensor([int(encoded.lengths[row]) for row in part])
    return ids, (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long(), labels


@pytest.mark.slow
def test_loss_and_gradients_at_gpt2s_full_size(tmp_path: Path, shared_data: Path) -> None:
    """Sixteen rows of the file, each batch against transformers + PEFT, padded, in fp32; about a minute.

    VENEER_TEST_LAYERS makes it smaller.
    """
    folder = _gpt2(tmp_path / "gpt2", shared_data, n_layer=int(os.environ.get("VENEER_TEST_LAYERS", "12")))
    path = shared_data / "instruction" / "instruction-data.json"
    rows = prepare(Source(DataConfig.parse({"source": str(path), **WHOLE})), InstructionOptions()).train
    rows = rows.select(np.arange(16, dtype=np.int64))
    base = load_base(str(folder), head=HeadSpec("causal"))
    task = Instructions(Template("alpaca", ALPACA))
    adapted = adapt(
        base, task, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), precision="fp32"
    )
    with torch.no_grad():
        for _, parameter in adapter_parameters(adapted.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    encoded = task.encode(rows, base.tokenizer, 1024)
    assert encoded.targets is not None
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).eval()
    peft.set_peft_model_state_dict(model, adapter_state_dict(adapted.model))
    for part in (np.arange(8), np.arange(8, 16)):
        model.zero_grad()
        adapted.model.zero_grad()
        ids, mask, labels = _padded(encoded, part)
        expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        expected.backward()
        batch = pack([encoded[int(row)] for row in part])
        targets = task.collate(encoded.targets[part[list(batch.order)]])
        found = task.loss(adapted.outputs(batch, targets=targets), targets, batch.layout)
        found.backward()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        theirs = {
            name.replace(".default", ".").replace("..", "."): p.grad
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        mine = adapter_parameters(adapted.model)
        assert len(mine) == len(theirs)
        largest = max(float(gradient.abs().max()) for gradient in theirs.values())
        for (name, parameter), gradient in zip(mine, theirs.values(), strict=True):
            assert parameter.grad is not None
            off = float((parameter.grad - gradient).abs().max())
            assert off < 1e-4 * largest, name  # fp32 through twelve layers
        print(f"loss {float(found.detach()):.6f}, transformers + PEFT {float(expected.detach()):.6f}")  # noqa: T201


@pytest.mark.slow
def test_the_whole_file_is_learnt_by_heart(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small GPT-2 with random weights and every row of the file; VENEER_TEST_ROWS makes it shorter.

    A prompt that stands in the file with two answers has one of them wrong, whatever is learnt: 25 rows of the 1,100.
    """
    no_pictures(monkeypatch)
    base = _gpt2(tmp_path / "base", shared_data, n_embd=256, n_layer=4, n_head=4, n_positions=512)
    _spread_embeddings(base)
    records = json.loads((shared_data / "instruction" / "instruction-data.json").read_text(encoding="utf-8"))
    records = records[: int(os.environ.get("VENEER_TEST_ROWS", len(records)))]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    epochs = int(os.environ.get("VENEER_TEST_EPOCHS", "45"))
    done = train(
        file, base=str(base), out=tmp_path / "adapter", epochs=epochs, batch_size=16, learning_rate=1e-3,
        lora={"r": 64}, device="cpu", baselines=False, data=WHOLE, precision="bf16",
    )  # fmt: skip
    found = evaluate(load(done.path), file).metrics.to_json()
    print({key: value for key, value in found.items() if key != "intervals"})  # noqa: T201
    assert found["exact_match"] > _most_that_can_be_known(records) - 0.005


def _most_that_can_be_known(records: list[dict[str, str]]) -> float:
    """The share of rows that are answered word for word by whoever answers a prompt in one way."""
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in records:
        answers[row["instruction"], row["input"]][row["output"]] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(records)


@pytest.mark.slow
def test_faster_than_peft_with_padding(tmp_path: Path, shared_data: Path) -> None:
    """Forward and backward over the same batches of 16 rows at GPT-2's full size, in fp32, in turns.

    VENEER_TEST_LAYERS and VENEER_TEST_BATCHES make it smaller.
    """
    folder = _gpt2(tmp_path / "gpt2", shared_data, n_layer=int(os.environ.get("VENEER_TEST_LAYERS", "12")))
    path = shared_data / "instruction" / "instruction-data.json"
    rows = prepare(Source(DataConfig.parse({"source": str(path), **WHOLE})), InstructionOptions()).train
    task = Instructions(Template("alpaca", ALPACA))
    base = load_base(str(folder), head=HeadSpec("causal"))
    adapted = adapt(
        base, task, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), precision="fp32"
    )
    encoded = task.encode(rows, base.tokenizer, 1024)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).eval()
    seconds = {"veneer": 0.0, "peft": 0.0}
    batches = int(os.environ.get("VENEER_TEST_BATCHES", "6"))
    order = np.random.default_rng(0).permutation(len(rows))[: 16 * (batches + 1)].reshape(-1, 16)
    for number, part in enumerate(order):
        batch = pack([encoded[int(row)] for row in part])
        assert encoded.targets is not None
        targets = task.collate(encoded.targets[part[list(batch.order)]])
        ids, mask, labels = _padded(encoded, part)
        for side in seconds:
            began = time.perf_counter()
            if side == "veneer":
                loss = task.loss(adapted.outputs(batch, targets=targets), targets, batch.layout)
            else:
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            if number:  # the first batch makes kernels
                seconds[side] += time.perf_counter() - began
        model.zero_grad()
        adapted.model.zero_grad()
    rates = {side: 16 * batches / taken for side, taken in seconds.items()}
    print({side: f"{rate:.1f} examples/s" for side, rate in rates.items()})  # noqa: T201
    assert rates["veneer"] > rates["peft"]
