"""A checkpoint is whole or not there; one of another run, or a damaged one, is an error that says so."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from veneer import files
from veneer.errors import CheckpointError, VeneerError
from veneer.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint

IDENTITY = {"configuration": "c", "data": "d", "base": "b"}


def checkpoint(step: int = 3, **changes: Any) -> Checkpoint:
    given: dict[str, Any] = {
        "step": step,
        "identity": IDENTITY,
        "weights": {"a": torch.randn(3, 4).t(), "b": torch.tensor(1.5)},
        "optimizer": {"a.exp_avg": torch.randn(4, 3), "a.step": torch.tensor(3.0)},
        "best": {"a": torch.zeros(2)},
        "progress": {"history": [{"loss": 0.1 + 0.2}], "best_loss": math.inf, "best_score": None},
    }
    return Checkpoint(**(given | changes))


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(tmp_path, saved)
    found = latest_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert (found.step, found.identity, found.progress) == (saved.step, saved.identity, saved.progress)
    for name in ("weights", "optimizer", "best"):
        torch.testing.assert_close(getattr(found, name), getattr(saved, name), rtol=0, atol=0)


def test_only_the_newest_stays(tmp_path: Path) -> None:
    for step in (2, 10, 100):
        save_checkpoint(tmp_path, checkpoint(step))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000100"]
    save_checkpoint(tmp_path, checkpoint(100))
    found = latest_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 100


def test_there_may_be_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path, IDENTITY) is None
    assert latest_checkpoint(tmp_path / "nowhere", IDENTITY) is None


def test_one_that_was_being_written_is_not_seen(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(3))
    half = tmp_path / ".checkpoint-00000009.new-xyz"
    half.mkdir()
    (half / "state.json").write_text("{")
    found = latest_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 3
    save_checkpoint(tmp_path, checkpoint(5))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000005"]


@pytest.mark.parametrize("calls_before", range(4))
def test_a_full_disk_leaves_the_older_one(
    tmp_path: Path, calls_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint(3))
    plain, calls = files.os.fsync, []

    def fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) > calls_before:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(VeneerError, match="disk is full"):
        save_checkpoint(tmp_path, checkpoint(4))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000003"]
    found = latest_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert found.step == 3


@pytest.mark.parametrize("key", IDENTITY)
def test_one_of_another_run_is_refused_by_what_differs(tmp_path: Path, key: str) -> None:
    save_checkpoint(tmp_path, checkpoint())
    with pytest.raises(CheckpointError, match=rf"an unfinished run \S+ \w+ {key}"):
        latest_checkpoint(tmp_path, IDENTITY | {key: "other"})


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_one_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = save_checkpoint(tmp_path, checkpoint()) / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
        if name == "state.json":
            assert latest_checkpoint(tmp_path, IDENTITY) is None
            return
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(CheckpointError, match=r"is damaged .*fresh=True"):
        latest_checkpoint(tmp_path, IDENTITY)


def test_a_state_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, checkpoint()) / "state.json"
    for text in ("[]", "{}", "3"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="is damaged"):
            latest_checkpoint(tmp_path, IDENTITY)
