"""Whoever adds a task writes one file and a line of `KINDS`: a task of the tests is used by every verb."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fifth_task
from bases import tiny_bert
from cli.command import veneer
from every_task import _phrases
from small_runs import no_pictures
from veneer.errors import AdapterError
from veneer.tasks import inference, registry
from veneer.tasks.kind import Findings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained adapter, its base and its data, while Veneer knows the task."""
    found = tmp_path_factory.mktemp("fifth")
    tiny_bert(found / "base")
    with (found / "shares.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "share"])
        table.writerows((text, good / 4 if good else 0.01) for text, good in _phrases(60))
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        kinds = (fifth_task.KIND, *registry.KINDS)
        patch.setattr(registry, "KINDS", kinds)
        patch.setattr(inference, "KINDS", kinds)
        told = veneer(
            "train", found / "shares.csv", "--base", found / "base", "--out", found / "out",
            "--epochs", 3, "--precision", "fp32", "--json",
        )  # fmt: skip
        assert told.code == 0, told.err
        assert told.json["task"] == "shares"
        yield found


def test_every_verb_knows_it(folder: Path) -> None:
    measured = veneer("evaluate", folder / "out", folder / "shares.csv", "--json")
    assert measured.code == 0, measured.err
    assert 0 < measured.json["metrics"]["error"] < 1
    assert "error" in veneer("evaluate", folder / "out", folder / "shares.csv").out
    shown = veneer("inspect", folder / "out")
    assert (shown.code, "shares" in shown.out) == (0, True)
    seen = veneer("preview", folder / "shares.csv", "--base", folder / "base", "--json")
    assert (seen.code, seen.json["task"]) == (0, "shares"), seen.err
    answered = folder / "answers.csv"
    told = veneer("predict", folder / "out", "--file", folder / "shares.csv", "--out", answered, "--json")
    assert told.code == 0, told.err
    assert (told.json["rows"], len(told.json["columns"])) == (60, 1)
    merged = veneer("merge", folder / "out", folder / "merged", "--json")
    assert merged.code == 0, merged.err


def test_its_answers_are_those_of_peft(folder: Path) -> None:
    text = "love great film 3"
    told = veneer("predict", folder / "out", text, "--json", "--precision", "fp32")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    model = PeftModel.from_pretrained(base, folder / "out").eval()
    with torch.no_grad():
        logit = model(**AutoTokenizer.from_pretrained(folder / "base")(text, return_tensors="pt")).logits
    assert told.json["answers"][0]["share"] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-4)


def test_what_it_does_not_say_has_a_default(folder: Path) -> None:
    assert fifth_task.KIND.findings(None) == Findings()  # type: ignore[arg-type]
    assert fifth_task.KIND.inspect({}) == []
    with pytest.raises(AdapterError, match="do not say all that this task needs"):
        fifth_task.KIND.of_peft(None, None)  # type: ignore[arg-type]
    facts = json.loads((folder / "out" / "veneer.json").read_text(encoding="utf-8"))
    assert facts["task"] == "shares"
