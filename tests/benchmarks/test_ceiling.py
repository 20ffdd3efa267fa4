"""The ceiling runs on the tasks' own rows: everything is trained, and the figures are the tasks' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.ceiling import main
from torch import nn

from bases import tiny_bert
from question_files import question_file
from small_runs import messages
from veneer.models import load_base
from veneer.models.forms import HeadSpec


@pytest.mark.parametrize(("task", "key"), [("answers", "f1"), ("classification", "accuracy")])
def test_the_ceiling_of_a_task(
    task: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_bert(tmp_path / "base", max_length=96)
    data = question_file(tmp_path / "q.json") if task == "answers" else messages(tmp_path / "m.csv", rows=90)
    flags = "--epochs 8 --learning-rate 0.003 --batch-size 8 --json --no-dropout".split()  # noqa: SIM905
    assert main([str(data), "--base", str(base), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == task
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    assert found["metrics"]["test"][key] > 0.5
    assert found["sizes"]["test"] == found["metrics"]["test"]["n"]
    if task == "answers":
        plain: nn.Module = load_base(str(base), head=HeadSpec("span")).model
        assert found["trained_parameters"] == sum(p.numel() for p in plain.parameters())
