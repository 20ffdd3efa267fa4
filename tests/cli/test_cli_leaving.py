"""veneer merge, export and combine on the command line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from command import veneer
from docs_json import documented
from tiny_adapter import Trained

from veneer.tasks.loading import load


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


@pytest.mark.parametrize("verb", ["merge", "export", "combine"])
def test_help_with_examples_in_80_columns(verb: str) -> None:
    done = veneer(verb, "--help")
    assert done.code == 0
    assert done.out.count(f"veneer {verb}") >= 3
    assert "…" not in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert importlib.import_module(f"veneer.cli.{verb}").EXAMPLES.count("$ veneer") == 3


def test_merge(trained: Trained, tmp_path: Path) -> None:
    done = veneer("merge", trained.adapter, tmp_path / "model", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == documented("merge")
    assert (done.json["dtype"], done.json["pooling"], done.json["pooling_of_transformers"]) == (
        "float32",
        "mean",
        False,
    )
    assert done.json["drift"] < 1e-4
    assert "transformers' own class reads another one" in " ".join(done.err.split())
    again = veneer("merge", trained.adapter, tmp_path / "model")
    assert again.code == 2
    assert "--overwrite" in again.err
    shown = veneer("merge", trained.adapter, tmp_path / "model", "--overwrite", "--quiet")
    assert shown.code == 0
    assert "the same answers" in shown.out


def test_export(trained: Trained, tmp_path: Path) -> None:
    done = veneer("export", trained.adapter, tmp_path / "peft", "--format", "peft", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == documented("export")
    assert done.json["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    shown = veneer("export", trained.adapter, tmp_path / "peft", "--format", "peft", "--overwrite")
    assert "adapter_model.safetensors" in shown.out
    missing = veneer("export", trained.adapter, tmp_path / "x")
    assert missing.code == 2
    assert "--format onnx or --format peft" in missing.err


def test_combine(trained: Trained, tmp_path: Path) -> None:
    other = tmp_path / "other"
    made = veneer(
        "train", trained.table, *trained.tiny, "--out", other, "--pooling", "mean", "--seed", 3, "--json"
    )
    assert made.code == 0, made.err
    given = ("--adapter", f"{trained.adapter}=0.75", "-a", f"{other}=0.25")
    differ = veneer("combine", tmp_path / "out", *given)
    assert differ.code == 2
    said = " ".join(differ.err.split())
    assert "--heads messages (or another one's name), or --heads mean for the weighted mean" in said
    done = veneer(
        "combine", tmp_path / "out", *given, "--method", "svd", "--r", 4, "--heads", "mean", "--json"
    )
    assert done.code == 0, done.err
    assert set(done.json) == documented("combine")
    assert 0.0 < done.json["error"] < 1.0
    assert done.json["r"] == 4
    load(tmp_path / "out")  # its golden answers are replayed
    again = veneer("combine", tmp_path / "out", *given, "--heads", "messages")
    assert "Give --overwrite to replace it, or another place with OUT." in " ".join(again.err.split())
    shown = veneer("combine", tmp_path / "out", *given, "--heads", "messages", "--overwrite")
    assert "exact" in shown.out
    inspected = veneer("inspect", tmp_path / "out")
    assert inspected.code == 0, inspected.err
    assert "combined from messages (0.75), other (0.25)" in " ".join(inspected.out.split())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("-a", "a"), "expected a folder and its weight"),
        (("-a", "a=x"), "expected a folder and its weight"),
        (("-a", "a=1", "-a", "a=2"), "names a twice"),
        ((), "two or more are needed"),
    ],
)
def test_what_combine_refuses(given: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = veneer("combine", tmp_path / "out", *given)
    assert done.code == 2
    assert says in " ".join(done.err.split())


def test_a_dora_adapter_from_training_to_a_model(trained: Trained, tmp_path: Path) -> None:
    made = veneer(
        "train",
        trained.table,
        *trained.tiny,
        "--use-dora",
        "--r",
        2,
        "--pooling",
        "mean",
        "--out",
        tmp_path / "d",
        "--json",
    )
    assert made.code == 0, made.err
    assert "DoRA" in veneer("inspect", tmp_path / "d").out
    done = veneer("merge", tmp_path / "d", tmp_path / "model", "--json")
    assert done.code == 0, done.err
    assert done.json["drift"] < 1e-5
    both = ("-a", f"{trained.adapter}=1", "-a", f"{tmp_path / 'd'}=1", "--heads", "mean")
    refused = veneer("combine", tmp_path / "out", *both)
    assert refused.code == 2
    assert "DoRA adapter rescales" in " ".join(refused.err.split())
