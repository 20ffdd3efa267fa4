"""The watch stands still while the test set is answered, and says when the accuracy was first seen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.time_to_accuracy import _summary, main, reach

from bases import tiny_bert
from veneer.tasks.adapted import Adapted

WORDS = ("good", "fine", "bad", "poor")


def rows(folder: Path) -> str:
    """Forty rows whose label follows from a word."""
    file = folder / "rows.csv"
    lines = [f"{WORDS[i % 4]} thing {i},{'up' if i % 4 < 2 else 'down'}" for i in range(40)]
    file.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def test_a_run_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, looks = Adapted.outputs_of, []

    def slow(adapted: Adapted, *arguments: Any, **named: Any) -> Any:
        looks.append(time.sleep(0.3))
        return answer(adapted, *arguments, **named)

    monkeypatch.setattr(Adapted, "outputs_of", slow)
    settings = {"base": str(tiny_bert(tmp_path / "base")), "epochs": 2, "precision": "fp32"}
    began = time.perf_counter()
    found = reach(rows(tmp_path), 0, every=2, wanted=0.0, settings=settings)
    whole = time.perf_counter() - began
    assert found.step == 2  # the first look is enough for an accuracy of 0
    assert len(looks) == -(-found.steps // 2)
    assert found.seconds is not None
    assert found.setup_s < found.seconds < found.run_s <= whole - 0.3 * len(looks)
    assert reach(rows(tmp_path), 0, every=50, wanted=1.1, settings=settings).seconds is None
    assert "1 of 1 runs reached 97.33 %" in _summary([found], 97.33)


def test_without_the_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 1
    assert "--data names the folder" in capsys.readouterr().err
