"""The number of threads: as asked, as the environment says, or by a measurement that other programs can sway."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import veneer
from veneer.engine import choose_threads, own_threads, threads

CPU = torch.device("cpu")


def test_what_is_asked_for_is_not_measured() -> None:
    found = choose_threads(3, CPU)
    assert (found.count, found.reason, found.rates) == (3, "asked for", {})


def test_the_environment_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with own_threads():
        torch.set_num_threads(5)
        found = choose_threads("auto", CPU)
    assert (found.count, found.rates) == (5, {})
    assert "OMP_NUM_THREADS" in found.reason


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({4: 100.0, 2: 60.0, 1: 30.0}, 4),
        ({4: 100.0, 2: 120.0, 1: 30.0}, 4),  # not clearly faster: the same answer as yesterday
        ({4: 100.0, 2: 130.0, 1: 90.0}, 2),
        ({4: 2.0, 2: 60.0, 1: 90.0}, 1),
    ],
)
def test_fewer_are_taken_where_they_are_clearly_faster(
    rates: dict[int, float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_rate", lambda *_: rates[torch.get_num_threads()])
    before = torch.get_num_threads()
    with own_threads():
        torch.set_num_threads(4)
        found = choose_threads("auto", CPU)
        assert torch.get_num_threads() == 4  # only measured
    assert torch.get_num_threads() == before
    assert (found.count, found.rates) == (expected, rates)
    if expected < 4:
        assert f"{rates[expected] / rates[4]:.1f} x faster than 4" in found.reason


def test_the_measurement_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with own_threads():
        torch.set_num_threads(2)
        began = (
            time.process_time()
        )  # of both threads; a machine that is busy with others takes longer, and no more
        found = choose_threads("auto", CPU)
        assert time.process_time() - began < 6.0  # 0.6; a turn ends with its last piece
    assert set(found.rates) == {2, 1}
    assert min(found.rates.values()) > 0


_SPIN = """
import os, sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "loaded":
    import torch
from veneer.cli import main
main(["--version"])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "how", "expected"),
    [
        ({}, "fresh", "30000"),
        ({}, "loaded", "None"),  # PyTorch has read it already
        ({"GOMP_SPINCOUNT": "7"}, "fresh", "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "fresh", "None"),
    ],
)
def test_the_command_line_lets_waiting_threads_sleep_soon(
    given: dict[str, str], how: str, expected: str
) -> None:
    source = str(Path(veneer.__file__).parents[1])
    command = [sys.executable, "-c", _SPIN, source, how]
    done = subprocess.run(command, check=False, env={"PATH": "", **given}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr
