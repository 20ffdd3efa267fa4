"""`veneer evaluate`, `inspect` and `preview` on one tiny adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from command import veneer
from docs_json import documented
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score
from tiny_adapter import Trained

import veneer as package
from bases import tiny_bert, tiny_gpt2


def test_evaluate_against_scikit_learn(trained: Trained) -> None:
    done = veneer("evaluate", trained.adapter, trained.table, "--json", "--precision", "fp32")
    assert done.code == 0, done.err
    assert set(done.json) == documented("evaluate")
    table = pd.read_csv(trained.table)
    answers = package.load(trained.adapter, precision="fp32").predict(table["text"].tolist())
    given, found = table["label"].tolist(), [answer["label"] for answer in answers]
    metrics = done.json["metrics"]
    assert metrics["n"] == done.json["rows"] == 90
    assert metrics["accuracy"] == pytest.approx(accuracy_score(given, found))
    assert metrics["macro_f1"] == pytest.approx(f1_score(given, found, average="macro"))


def test_evaluate_for_people(trained: Trained) -> None:
    done = veneer("evaluate", trained.adapter, trained.table)
    assert done.code == 0
    assert "precision" in done.out
    assert "given \\ answered" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_label_that_no_row_has_is_told(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "one.csv"
    table.write_text("text,label\nthanks for the help,ham\nlove this film,ham\n")
    done = veneer("evaluate", trained.adapter, table, "--json")
    assert done.code == 0, done.err
    assert "no row has the label 'spam'" in done.err
    assert "no row has" not in veneer("evaluate", trained.adapter, trained.table).err


def test_columns_that_the_task_does_not_read_are_refused(trained: Trained) -> None:
    done = veneer("evaluate", trained.adapter, trained.table, "--column", "question=text")
    assert done.code == 2
    assert "--column question=text: the task classification has no column 'question'" in done.err


def test_inspect_says_what_was_edited_by_hand(trained: Trained, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(trained.adapter, tmp_path / "edited"))
    text = (edited / "veneer.json").read_text(encoding="utf-8")
    (edited / "veneer.json").write_text(text.replace('"spam"', '"junk"'), encoding="utf-8")
    done = veneer("inspect", edited, "--json")
    assert done.code == 0, done.err
    assert "veneer.json was edited" in done.err
    assert len(done.json["changed"]) == 1
    assert veneer("inspect", trained.adapter, "--json").json["changed"] == []
    (edited / "veneer.json").unlink()
    assert "Veneer (no veneer.json: labels" in veneer("inspect", edited).out
    (edited / "veneer.json").write_text("[" * 100_000, encoding="utf-8")
    assert "veneer.json is not the file that was written" in veneer("inspect", edited).err
    (edited / "veneer.json").write_text(text.replace('"spam"', '"junk"'), encoding="utf-8")
    refused = veneer("predict", edited, "win a prize")
    assert refused.code == 1
    assert "--no-verify" in refused.err


def test_the_rows_of_training_are_not_measured_unseen(trained: Trained, tmp_path: Path) -> None:
    own = veneer("evaluate", trained.adapter, trained.table)
    assert "is the file that this adapter was trained on" in own.err
    flags = [
        "--base",
        trained.base,
        "--precision",
        "fp32",
        "--epochs",
        1,
        "--no-baselines",
        "--split-seed",
        5,
    ]
    made = veneer("train", "example", "--out", tmp_path / "a", "--max-rows", 200, *flags, "--json")
    again = veneer("evaluate", tmp_path / "a", "example", "--precision", "fp32", "--json")
    assert made.code == again.code == 0, made.err + again.err
    for key in ("n", "accuracy", "log_loss"):  # the same test part, in the same split
        assert again.json["metrics"][key] == pytest.approx(made.json["metrics"]["test"][key], abs=1e-5)


def test_a_label_that_nobody_trained(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text(
        "text,label\nwin a prize now,spam\nthe film is good,eggs\nthanks for it,spam\ni love it,ham\n"
    )
    done = veneer("evaluate", trained.adapter, file)
    assert done.code == 2
    assert "'eggs'" in done.err
    assert "Known labels: ham, spam" in done.err
    missing = veneer("evaluate", trained.adapter, tmp_path / "nope.csv", "--json")
    assert missing.code == 2
    assert "nope.csv" in missing.json["error"]["message"]


def test_inspect_an_adapter(trained: Trained) -> None:
    done = veneer("inspect", trained.adapter, "--json")
    assert done.code == 0, done.err
    said = done.json
    assert set(said) == documented("inspect ADAPTER")
    assert said["made_by"] == "veneer"
    assert said["labels"] == ["ham", "spam"]
    assert {group["layers"] for group in said["layers"]} == {2}  # a tiny BERT has two blocks
    adapted = package.load(trained.adapter)
    assert said["parameters"] == package.count_parameters(adapted.model).trainable
    assert said["size_bytes"] == (trained.adapter / "adapter_model.safetensors").stat().st_size
    for_people = veneer("inspect", trained.adapter)
    assert "test" in for_people.out
    assert "fp32" in for_people.out
    assert "bert.encoder.layer.*.attention.self.query" in for_people.out


def test_inspect_an_adapter_that_peft_wrote(trained: Trained, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained.adapter / name, tmp_path)
    tensors = tmp_path / "adapter_model.safetensors"
    save_file(load_file(tensors), tensors, metadata={"format": "pt"})  # as PEFT writes it
    done = veneer("inspect", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.json["made_by"] == "peft"
    assert done.json["base"] == str(trained.base)
    assert "PEFT" in veneer("inspect", tmp_path).out
    damaged = tmp_path / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert veneer("inspect", tmp_path).code == 2


@pytest.mark.parametrize(("make", "targets"), [(tiny_bert, "query,value"), (tiny_gpt2, "all-linear")])
def test_inspect_a_base_says_what_attach_will_do(tmp_path: Path, make: object, targets: str) -> None:
    base = make(tmp_path / "base")  # type: ignore[operator]
    (base / "model.safetensors").unlink()  # no weight is needed
    done = veneer("inspect", base, "--target-modules", targets, "--r", 4, "--labels", 3, "--json")
    assert done.code == 0, done.err
    assert set(done.json) == documented("inspect BASE")
    make(base)  # type: ignore[operator]
    model = package.load_base(str(base), labels=["a", "b", "c"]).model
    assert done.json["parameters"] == package.count_parameters(model).total
    saved = done.json["lora"]["modules_to_save"]
    chosen = targets.split(",") if "," in targets else targets
    package.attach(model, package.LoraConfig(r=4, target_modules=chosen, modules_to_save=saved))
    assert done.json["trainable"] == package.count_parameters(model).trainable
    assert veneer("inspect", base, "--target-modules", targets).code == 0


def test_inspect_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = veneer("inspect", tmp_path / "nothing" / "here")
    assert done.code == 2
    assert "There is no folder" in done.err
    wrong = veneer("inspect", tiny_bert(tmp_path / "base"), "--target-modules", "quary")
    assert wrong.code == 2
    assert "'query'" in wrong.err
    monkeypatch.setattr("huggingface_hub.snapshot_download", _no_network)
    offline = veneer("inspect", "someone/somemodel", "--json")
    assert offline.code == 2
    assert "can't be reached" in offline.json["error"]["message"]


def _no_network(*_: object, **__: object) -> None:
    raise LocalEntryNotFoundError("nothing in the cache, and no network")


def test_flags_of_the_adapter_don_t_go_with_an_adapter(trained: Trained) -> None:
    done = veneer("inspect", trained.adapter, "--r", 4)
    assert done.code == 2
    assert "is an adapter" in done.err


def test_preview_shows_tokens_and_counts(trained: Trained) -> None:
    done = veneer("preview", trained.table, "--base", trained.base, "--max-length", 12, "--examples", 3)
    assert done.code == 0, done.err
    assert "<CLS>" in done.out
    assert "·the·" in done.out or "·a·" in done.out
    assert "longer than the 12 that are read" in done.out
    assert "█" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_preview_agrees_with_the_tokenizer(trained: Trained) -> None:
    done = veneer("preview", trained.table, "--base", trained.base, "--max-length", 12, "--json")
    said = done.json
    assert set(said) == documented("preview")
    from veneer.models import load_tokenizer

    tokenizer = load_tokenizer(trained.base)
    for shown in [*said["examples"], said["longest"], said["shortest"]]:
        ids = tokenizer(shown["text"])["input_ids"]
        assert len(shown["tokens"]) == shown["length"] == len(ids)
        assert sum(token["read"] for token in shown["tokens"]) == min(12, len(ids))
        assert [token["special"] for token in shown["tokens"]] == [i in (2, 3) for i in ids]  # [CLS], [SEP]
        spelled = "".join(token["text"] for token in shown["tokens"] if not token["special"])
        assert spelled == shown["text"].rstrip()
    assert sum(said["labels"]["train"].values()) == said["lengths"]["train"]["texts"]
    assert sum(one["texts"] for one in said["histogram"]) == said["measured"]["train"]


def test_preview_of_the_example_needs_no_path(trained: Trained) -> None:
    done = veneer("preview", "example", "--base", trained.base, "--examples", 0, "--json")
    assert done.code == 0, done.err
    assert len(done.json["labels"]["train"]) == 6
    assert sum(sum(counts.values()) for counts in done.json["labels"].values()) == 878
