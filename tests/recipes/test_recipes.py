"""Every recipe from end to end: real data, GPT-2's real tokenizer, a model of random weights and small size."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from veneer.adapter import read_adapter
from veneer.cli import main
from veneer.engine import Runner
from veneer.errors import BaseError, ConfigError, SourceError
from veneer.lora import attach, load_adapter_state_dict, lora_config_from_peft
from veneer.models.changes import load_changes_
from veneer.recipes import CATALOGUE, Options, run
from veneer.recipes.gpt2 import END_OF_TEXT, MEANINGLESS, find_gpt2
from veneer.recipes.loop import Plan
from veneer.recipes.spam import padded, spam_sets
from veneer.recipes.sst2 import LEAK, _task, padded_logits, sst2_data
from veneer.recipes.ways import PREPARE

DOCS = Path(__file__).parents[2] / "docs"

Given = Callable[..., Options]


@pytest.fixture
def given(shared_data: Path, tmp_path: Path) -> Given:
    def options(data: str, **more: Any) -> Options:
        found = {
            "data": shared_data / data, "tokenizer": shared_data / "gpt2_tokenizer", "out": tmp_path / "out",
            "random_weights": True, "size": "tiny", "precision": "fp32",
        }  # fmt: skip
        return Options(**{**found, **more})

    return options


def documented(verb: str) -> set[str]:
    """The keys that docs/json.md lists for a verb."""
    section = (DOCS / "json.md").read_text(encoding="utf-8").split(f"## `{verb}`")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE))


class Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)

    def with_text(self, text: str) -> str:
        found = [line for line in self if text in line]
        assert found, f"no line says {text!r}"
        return found[0]


def test_spam_from_end_to_end(given: Given) -> None:
    said = Lines()
    options = given("sms_spam", max_steps=60, efficient=True)
    figures = run("spam-gpt2", options, said)
    assert said.count(MEANINGLESS) == 2
    assert figures["note"] == MEANINGLESS
    assert set(figures) <= documented("reproduce")
    assert figures["data"] == {
        "rows": {"train": 1045, "validation": 149, "test": 300}, "longest": 120,
        "batches": {"train": 130, "validation": 19, "test": 38}, "train_tokens": 31_779,
    }  # fmt: skip
    assert "1,045 / 149 / 300" in said.with_text("rows")
    assert said.with_text("after freezing").endswith(" 0")
    for way in ("faithful", "efficient"):
        assert figures[way]["steps"] == 60
        assert [step for step, *_ in figures[way]["losses"]] == [0, 50]
        for name in ("loss.png", "accuracy.png"):
            assert (options.out / way / name).read_bytes().startswith(b"\x89PNG")
    before, after = figures["efficient"]["losses"][0][1], figures["efficient"]["losses"][1][1]
    assert after < before  # it learns even on random features
    assert json.loads((options.out / "figures.json").read_text()) == figures
    with (options.out / "validation.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert (rows[0], len(rows)) == (["Label", "Text"], 150)
    assert {label for label, _ in rows[1:]} == {"0", "1"}
    assert (options.out / "faithful" / "changes" / "changes.safetensors").is_file()
    stored = read_adapter(options.out / "efficient" / "adapter")
    gpt = find_gpt2(options).language_model(options.seed)
    gpt.set_classification_head(2)
    attach(gpt, lora_config_from_peft(stored.peft_config))
    load_adapter_state_dict(gpt, stored.tensors)


def test_the_book_pads_and_cuts() -> None:
    rows = padded([[1, 2], [3, 4, 5, 6, 7]], 4)
    assert rows.tolist() == [[1, 2, END_OF_TEXT, END_OF_TEXT], [3, 4, 5, 6]]


def test_the_batches_of_the_book() -> None:
    plan = Plan(epochs=5, batch_size=8, learning_rate=1, weight_decay=0, drop_last=True)
    assert plan.steps(1045) == 650
    batches = list(plan.batches(1045))
    first = np.concatenate([rows for epoch, rows in batches if epoch == 0])
    assert len(batches) == 650
    assert len(set(first.tolist())) == 1040
    assert not np.array_equal(batches[0][1], batches[130][1])


def test_the_sets_are_the_book_s(given: Given) -> None:
    options = given("sms_spam")
    sets = spam_sets(options, find_gpt2(options))
    assert sum(int(part.labels.sum()) for part in sets.values()) == 747  # half of the 1,494
    assert sum(map(len, sets["train"].ids)) == 31_779


@pytest.mark.parametrize("efficient", [False, True])
def test_sst2_from_end_to_end(given: Given, efficient: bool) -> None:
    pytest.importorskip("peft")
    said = Lines()
    options = given("sst2", max_steps=4, max_rows=400, efficient=efficient)
    figures = run("sst2", options, said)
    assert said.count(MEANINGLESS) == 2
    assert list(figures["ways"]) == ["partial", "hook", "peft"]
    assert figures["rows"] == {"train": 320, "split": 80, "glue": 872}
    assert said.with_text("20 % split: ").endswith(LEAK)
    trainable = {way: found["trainable"] for way, found in figures["ways"].items()}
    assert trainable == {"partial": 2 * (32 * 96 + 96) + 64, "hook": 512, "peft": 512}
    for way, found in figures["ways"].items():
        assert (options.out / way / "accuracy.png").is_file()
        assert 0 < found["stored_bytes"] < found["whole_model_bytes"] / 100
        assert found["steps"] == 4
        assert len(found["epochs"]) == 1


def test_what_the_ways_store_gives_the_model_back(given: Given) -> None:
    pytest.importorskip("peft")
    options = given("sst2", max_rows=100)
    gpt2 = find_gpt2(options)
    data = sst2_data(options, gpt2)
    texts = data.ids["glue"][:8]
    for way, prepare in PREPARE.items():
        ready = prepare(gpt2.transformers_classifier(1), 1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for parameter in ready.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            expected = padded_logits(ready.model.eval(), texts)
            plain = padded_logits(gpt2.transformers_classifier(1), texts)
            assert not torch.allclose(expected, plain, atol=1e-3)
            ready.store(options.out / way, gpt2.name)
            again = gpt2.transformers_classifier(1)
            if way == "partial":
                load_changes_(again, options.out / way)
            else:
                folder = read_adapter(options.out / way)
                attach(again, lora_config_from_peft(folder.peft_config), strict=False)
                load_adapter_state_dict(again, folder.tensors)
            torch.testing.assert_close(padded_logits(again, texts), expected, atol=1e-5, rtol=0)  # fp32


def test_packed_and_padded_give_one_answer(given: Given) -> None:
    options = given("sst2", max_rows=100)
    gpt2 = find_gpt2(options)
    data = sst2_data(options, gpt2)
    ready = PREPARE["hook"](gpt2.transformers_classifier(1), 1)
    for parameter in ready.parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    rows = np.arange(24)
    with torch.no_grad():
        ways = [
            _task(ready, data, "glue", runner).logits(rows)
            for runner in (None, Runner.of(ready.classifier, mode="packed"))
        ]
    torch.testing.assert_close(ways[0], ways[1], atol=1e-5, rtol=1e-4)  # fp32, sums in another order


def test_the_counts_at_full_size() -> None:
    gpt2 = find_gpt2_on_meta()
    for way, expected in {"partial": 3_545_088, "hook": 12_288}.items():
        assert sum(p.numel() for p in PREPARE[way](gpt2(), 0).parameters) == expected
    pytest.importorskip("peft")
    assert sum(p.numel() for p in PREPARE["peft"](gpt2(), 0).parameters) == 12_288


def find_gpt2_on_meta() -> Callable[[], Any]:
    from transformers import GPT2ForSequenceClassification

    def make() -> Any:
        with torch.device("meta"):
            return GPT2ForSequenceClassification(GPT2Config(num_labels=2, pad_token_id=END_OF_TEXT))

    return make


def test_sst2_has_the_tokens_of_the_facts(given: Given) -> None:
    options = given("sst2")
    data = sst2_data(options, find_gpt2(options))
    lengths = [len(ids) for part in ("train", "split") for ids in data.ids[part]]
    assert (len(lengths), sum(lengths), max(lengths)) == (67_349, 765_056, 64)
    assert len(data.labels["train"]) == 53_879
    assert len(data.labels["glue"]) == 872


def test_published_files_are_read(given: Given, tmp_path: Path) -> None:
    """A folder as the hub has it, of small size."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_head=2, n_layer=3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    more = {"random_weights": False, "model": str(tmp_path / "gpt2")}
    said = Lines()
    figures = run("spam-gpt2", given("sms_spam", max_steps=1, **more), said)
    assert figures["greeting"]["as_published"] is False
    assert "GPT-2 small's own goes on otherwise" in said.with_text("check of the weights")
    assert MEANINGLESS not in said
    figures = run("sst2-hook", given("sst2", max_steps=1, max_rows=100, **more), said)
    stored = read_adapter(tmp_path / "out" / "hook" / "stored")
    assert stored.peft_config["base_model_name_or_path"] == str(tmp_path / "gpt2")


def test_without_weights_one_sentence_comes_first(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise BaseError("no network")

    monkeypatch.setattr("veneer.recipes.gpt2.locate", unreachable)
    said = Lines()
    with pytest.raises(
        BaseError, match=r"^GPT-2's weights .* model=PATH, or run with random_weights=True [^.]*\.$"
    ):
        run("spam-gpt2", given("sms_spam", random_weights=False), said)
    with pytest.raises(BaseError, match="with tokenizer=PATH"):
        run("sst2", given("sst2", tokenizer=None), said)
    with pytest.raises(SourceError, match="no file"):
        run("spam-gpt2", given("nothing_here"), said)
    assert said == []
    assert not given("sms_spam").out.exists()


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'spam-gpt2'"):
        run("spam-gtp2", Options(), Lines())


def test_the_command_lists_and_runs(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [entry["name"] for entry in listed] == [entry.name for entry in CATALOGUE]
    command = f"reproduce sst2-hook --random-weights --size tiny --max-steps 1 --max-rows 100 --json --out {tmp_path}"
    places = ["--data", str(shared_data / "sst2"), "--tokenizer", str(shared_data / "gpt2_tokenizer")]
    assert main([*command.split(), *places]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert figures["ways"]["hook"]["trainable"] == 512
    assert set(figures) <= documented("reproduce")
    assert MEANINGLESS in err
