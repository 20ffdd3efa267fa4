"""Estimates before a run: held against what the run then took, and against the memory there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import veneer.training.estimate as estimating
from small_runs import config, no_pictures
from veneer.training.estimate import announced, estimate, estimate_run
from veneer.training.prepare import set_up
from veneer.training.run import train
from veneer.training.trial import Trial, run_trial


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["bert", "sentence", "gpt2"])  # reads the first token, the mean, the last
def test_the_plan_is_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """And whatever a step took, three epochs are three times one."""
    monkeypatch.setattr(Trial, "fitted", lambda _: (0.01, 0.001))
    monkeypatch.setattr(estimating, "_twice", lambda *given: (run_trial(*given), 0.0))
    run = set_up(config(tmp_path, kind=kind, epochs=3))
    found = estimate_run(run)
    assert found.training_seconds == pytest.approx(0.01 * found.steps + 0.001 * found.tokens)
    lengths = run.stores["train"].lengths
    assert found.steps == run.plan.steps == 3 * int(np.ceil(len(lengths) / 8))
    assert found.tokens == 3 * int(lengths.sum())
    batches = [rows for step in range(run.plan.steps_per_epoch) for rows in run.plan.batches(step)]
    assert found.longest_batch_tokens == max(int(lengths[rows].sum()) for rows in batches)
    assert found.trial_steps >= 3
    assert found.fits
    assert found.options == ()


def test_what_is_done_once_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trial makes kernels: its steps are not those that all others are worked out from."""
    took = iter([[3.0, 2.0], [1.0, 1.0], [3.0, 2.0], [5.0, 4.0], [1.0, 1.0]])
    monkeypatch.setattr(estimating, "run_trial", lambda *_: Trial(0.0, seconds=next(took), tokens=[8, 8]))
    found, once = estimating._twice(None, [0, 1], 20.0)  # type: ignore[arg-type]
    assert (found.seconds, once) == ([1.0, 1.0], 3.0)
    found, once = estimating._twice(None, [0, 1], 9.0)  # type: ignore[arg-type]  # the time is up
    assert (found.seconds, once) == ([3.0, 2.0], 0.0)
    assert next(took) == [5.0, 4.0]


def test_the_report_says_what_was_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float | None] = []

    def keep(facts: object) -> tuple[str, dict[str, bytes]]:
        shown.append(facts.speed.predicted_seconds)  # type: ignore[attr-defined]
        return "<html></html>", {}

    monkeypatch.setattr("veneer.training.pages.report_html", keep)
    settings = config(tmp_path)
    assert announced(set_up(settings).identity) is None
    found = estimate(settings)
    done = train(settings, out=tmp_path / "adapter")
    assert shown == [found.total_seconds]
    # Seconds on a busy machine: the same order of magnitude is all that can be asked for.
    assert found.training_seconds == pytest.approx(done.facts.speed["training_seconds"], rel=20)


def test_a_run_that_does_not_fit_is_told_how_it_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose memory ends at what the weights take, and steps that double it."""
    used = 100 * 2**20
    monkeypatch.setattr(estimating, "used_bytes", lambda _: used)
    monkeypatch.setattr(estimating, "peak_bytes", lambda _: 2 * used)
    monkeypatch.setattr(estimating, "available_bytes", lambda _: int(1.5 * used))
    found = estimate_run(set_up(config(tmp_path, batch_size=16)))
    assert not found.fits
    assert not found.peak_measured
    fitting = [option for option in found.options if option.fits]
    assert fitting
    assert found.options[0].flags == "--gradient-checkpointing"
    first = next(option for option in fitting if "batch_size" in option.settings)
    assert first.settings["batch_size"] * first.settings["gradient_accumulation"] == 16
    assert first.flags == f"--batch-size {first.settings['batch_size']} --gradient-accumulation " + str(
        first.settings["gradient_accumulation"]
    )
    assert any("it does not fit" in line for line in found.lines())
    assert any(first.flags in line for line in found.lines())
    assert found.to_json()["fits"] is False


def test_a_line_through_the_steps() -> None:
    trial = Trial(stop_at=0.0)
    trial.tokens, trial.seconds = (
        [50, 10, 20, 40],
        [9.0, 1.2, 1.4, 1.8],
    )  # 1 s + 0.02 s a token; the first warms up
    assert trial.fitted() == pytest.approx((1.0, 0.02))
    trial.tokens, trial.seconds = [50, 10, 20], [9.0, 1.0, 2.0]  # too few for a line
    assert trial.fitted() == pytest.approx((0.0, 0.1))
    trial.tokens, trial.seconds = [50, 10, 20, 30], [9.0, 2.0, 1.5, 1.0]  # noise: heavier steps were faster
    assert trial.fitted() == pytest.approx((1.5, 0.0))


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures(monkeypatch)
    settings = config(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    estimate(settings)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == before
