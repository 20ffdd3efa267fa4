"""Runs on a base in int8: they learn, say how far off they are, and go on to the same bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from small_runs import config, no_pictures, two_files
from veneer.errors import Interrupted
from veneer.lora import held_in_int8
from veneer.tasks.loading import load
from veneer.training.config import TrainConfig
from veneer.training.estimate import estimate
from veneer.training.loop import StepInfo
from veneer.training.prepare import set_up
from veneer.training.run import Quiet, train


class Losses(Quiet):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, info: StepInfo) -> None:
        self.losses.append(info.loss)


class Stopping(Quiet):
    """Asks the run to stop after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, info: StepInfo) -> None:
        if info.step == self.after:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_run_in_int8_learns_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    no_pictures(monkeypatch)
    given = config(tmp_path, kind=kind, precision="int8", epochs=20, learning_rate=5e-3)
    heard = Losses()
    done = train(given, out=tmp_path / "adapter", reporter=heard)
    assert sum(heard.losses[-20:]) < 0.2 * sum(heard.losses[:20])
    facts = done.folder.facts
    assert facts is not None
    assert facts.exactness["precision"] == "int8"
    assert "not exact: " in facts.exactness["precision_reason"]
    assert facts.training["precision"] in ("int8-fp32", "int8-bf16")
    texts = ["win free prize now", "thanks good film"]
    exact = load(done.path, precision="fp32")
    rounded = load(done.path, precision="int8-fp32")
    assert held_in_int8(exact.model) == []
    assert held_in_int8(rounded.model)
    outputs = [torch.from_numpy(a.outputs_of(a.encode_inputs(texts))) for a in (exact, rounded)]
    torch.testing.assert_close(
        outputs[1], outputs[0], rtol=0.1, atol=0.1
    )  # 1 % of each weight, two layers deep
    assert not torch.equal(*outputs)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures(monkeypatch)
    given = config(tmp_path, precision="int8")
    whole = train(given, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(given, out=tmp_path / "broken", reporter=Stopping(3))
    again = train(given, out=tmp_path / "broken")
    assert two_files(again.path) == two_files(whole.path)


def test_a_kept_prefix_of_int8_is_not_the_exact_one(tmp_path: Path) -> None:
    lora = {"r": 2, "layers_to_transform": [1], "target_modules": ["query"]}
    states = []
    for precision in ("fp32", "int8-fp32"):
        run = set_up(config(tmp_path, precision=precision, lora=lora))
        assert "train" in run.prefixes
        states.append(run.prefixes["train"].states)
    assert not torch.equal(*states)
    torch.testing.assert_close(states[1], states[0], rtol=0.1, atol=0.1)


def test_auto_never_takes_int8() -> None:
    assert TrainConfig.parse({"data": {"source": "x.csv"}}).precision == "auto"


def test_a_dry_run_offers_it_where_nothing_exact_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veneer.training.estimate.available_bytes", lambda _: 1)
    options = {option.flags: option for option in estimate(config(tmp_path)).options}
    assert "not exact" in options["--precision int8"].effect
    assert options["--precision int8"].fits is False
