"""A whole run: the same bytes for the same settings, whatever happens to the process on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import config, messages, no_pictures, two_files
from veneer.adapter import read_adapter
from veneer.engine import choose_kernels
from veneer.engine.native import kernels
from veneer.engine.native.build import NotBuiltError
from veneer.errors import CheckpointError, ConfigError, DriftError, Interrupted, UserMistake
from veneer.lora import adapter_state_dict
from veneer.tasks import loading
from veneer.training import run as run_module
from veneer.training.checkpoint import latest_checkpoint
from veneer.training.config import TrainConfig
from veneer.training.finish import Finished
from veneer.training.loop import StepInfo
from veneer.training.prepare import Run
from veneer.training.run import Quiet, default_out, train


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


class Watching(Quiet):
    """Sends this process a signal at a step, and remembers where the run began."""

    def __init__(self, at: int | None = None, number: int = signal.SIGINT) -> None:
        self.at, self.number = at, number
        self.began: int | None = None
        self.steps: list[int] = []
        self.run: Run | None = None

    def set_up(self, run: Run, resumed_at: int) -> None:
        self.run, self.began = run, resumed_at

    def step(self, info: StepInfo) -> None:
        self.steps.append(info.step)
        if info.step == self.at:
            os.kill(os.getpid(), self.number)


def timeless(folder: Path) -> list[Mapping[str, Any]]:
    """metrics.jsonl without the seconds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def unfinished(out: Path) -> Path:
    return out.parent / f".{out.name}.run"


def facts_of(done: Finished) -> dict[str, Any]:
    """veneer.json without what a clock says."""
    facts: dict[str, Any] = done.facts.model_dump(mode="json")
    del facts["speed"], facts["facts_hash"]
    return facts


def test_the_same_run_writes_the_same_bytes(place: Path, tmp_path: Path) -> None:
    given = config(place)
    torch.manual_seed(1)
    one = train(given, out=tmp_path / "one")
    torch.manual_seed(2)
    two = train(given, out=tmp_path / "two")
    other = train(given.replace(seed=1), out=tmp_path / "other")
    assert two_files(one.path) == two_files(two.path)
    assert two_files(one.path)[0] != two_files(other.path)[0]
    assert timeless(one.path) == timeless(two.path)
    assert facts_of(one) == facts_of(two)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other", "two"]


@pytest.mark.parametrize("kind", ["gpt2", "sentence"])
def test_the_resolved_configuration_runs_again_as_it_is(place: Path, tmp_path: Path, kind: str) -> None:
    given = config(place, kind=kind, epochs=None, precision="auto", lora={})
    first = train(given, out=tmp_path / "first")
    resolved = TrainConfig.from_yaml(first.path / "config.yaml")
    assert resolved.epochs is not None
    assert "auto" not in (resolved.precision, resolved.pooling, resolved.mode, resolved.task)
    assert resolved.lora["modules_to_save"]
    again = train(resolved, out=tmp_path / "again")
    assert two_files(first.path) == two_files(again.path)
    assert (again.path / "config.yaml").read_bytes() == (first.path / "config.yaml").read_bytes()


def test_mean_pooling_leaves_a_pooler_that_nobody_reads_alone(place: Path, tmp_path: Path) -> None:
    done = train(config(place, kind="sentence"), out=tmp_path / "adapter")
    assert not any("pooler" in name for name in done.folder.tensors)
    first = train(config(place, kind="bert"), out=tmp_path / "first")
    assert any("pooler" in name for name in first.folder.tensors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 6, 12])
def test_a_stopped_run_saves_and_the_same_call_goes_on(
    place: Path, tmp_path: Path, at: int, number: int
) -> None:
    given = config(place)
    whole = train(given, out=tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(
        Interrupted, match=f"Stopped after step {at} of 12; .*Run the same command again to go on"
    ):
        train(given, out=out, reporter=Watching(at, number))
    assert not out.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    watching = Watching()
    done = train(given, out=out, reporter=watching)
    assert watching.began == at
    assert watching.steps == list(range(at + 1, 13))
    assert two_files(done.path) == two_files(whole.path)
    assert timeless(done.path) == timeless(whole.path)
    assert facts_of(done) == facts_of(whole)
    assert not unfinished(out).exists()


def test_a_run_goes_on_with_the_threads_it_began_with(place: Path, tmp_path: Path) -> None:
    """Last bits depend on their number; a shell with another OMP_NUM_THREADS, or a busy machine, must not matter."""

    class Counting(Watching):
        def step(self, info: StepInfo) -> None:
            counts.append(torch.get_num_threads())
            super().step(info)

    counts: list[int] = []
    before = torch.get_num_threads()
    given, out = config(place), tmp_path / "stopped"
    whole = train(given.replace(threads=2), out=tmp_path / "whole")
    try:
        torch.set_num_threads(2)
        with pytest.raises(Interrupted):
            train(given, out=out, reporter=Counting(5))
        torch.set_num_threads(1)
        done = train(given, out=out, reporter=Counting())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert counts == [2] * 12
    assert two_files(done.path) == two_files(whole.path)
    assert TrainConfig.from_yaml(done.path / "config.yaml").threads == 2


@pytest.mark.skipif(
    choose_kernels("auto", torch.device("cpu")).name != "compiled", reason="no compiled kernels here"
)
def test_a_run_goes_on_with_the_kernels_it_began_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the compiler went away in between, the run says so in place of ending in other bytes."""

    class Seeing(Watching):
        def step(self, info: StepInfo) -> None:
            seen.append(kernels() is not None)
            super().step(info)

    seen: list[bool] = []
    given, out = config(place), tmp_path / "stopped"
    with pytest.raises(Interrupted):
        train(given.replace(kernels="pytorch"), out=out, reporter=Seeing(5))
    done = train(given.replace(kernels="pytorch"), out=out, reporter=Seeing())
    assert seen == [False] * 12
    assert TrainConfig.from_yaml(done.path / "config.yaml").kernels == "pytorch"
    seen.clear()
    out = tmp_path / "compiled"
    with pytest.raises(Interrupted):
        train(given, out=out, reporter=Seeing(5))
    with monkeypatch.context() as without_compiler:
        without_compiler.setattr("veneer.engine.native.choice._tried", not_built)
        with pytest.raises(ConfigError, match=r"kernels.*can't be used here: no compiler"):
            train(given, out=out, reporter=Seeing())
    done = train(given, out=out, reporter=Seeing())
    assert seen == [True] * 12
    assert TrainConfig.from_yaml(done.path / "config.yaml").kernels == "compiled"


def not_built() -> Any:
    raise NotBuiltError("no compiler was found")


def test_two_runs_do_not_write_one_place(place: Path, tmp_path: Path) -> None:
    """Each would delete the other's checkpoints."""
    given, out = config(place), tmp_path / "adapter"
    refused: list[str] = []

    class Second(Watching):
        def step(self, info: StepInfo) -> None:
            super().step(info)
            if info.step == 2:
                with pytest.raises(UserMistake, match="Another process is writing") as caught:
                    train(given, out=out)
                refused.append(str(caught.value))

    done = train(given, out=out, reporter=Second())
    assert len(refused) == 1
    assert two_files(done.path) == two_files(train(given, out=tmp_path / "alone").path)


def test_a_second_signal_ends_at_once(place: Path, tmp_path: Path) -> None:
    class Twice(Watching):
        def step(self, info: StepInfo) -> None:  # noqa: ARG002
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config(place), out=tmp_path / "adapter", reporter=Twice())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_settings_on_an_unfinished_run_are_named(place: Path, tmp_path: Path) -> None:
    given, out = config(place), tmp_path / "adapter"
    with pytest.raises(Interrupted):
        train(given, out=out, reporter=Watching(3))
    other = given.replace(learning_rate=0.5, lora=given.lora | {"r": 2})
    with pytest.raises(CheckpointError) as caught:
        train(other, out=out)
    text = str(caught.value)
    assert "learning_rate was 0.001, is 0.5" in text
    assert "lora.r was 4, is 2" in text
    assert "discard it with fresh=True" in text
    assert "batch_size" not in text
    fresh = train(other, out=out, fresh=True)
    assert two_files(fresh.path) == two_files(train(other, out=tmp_path / "other").path)


def test_changed_data_under_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    given, out = config(tmp_path), tmp_path / "adapter"
    with pytest.raises(Interrupted):
        train(given, out=out, reporter=Watching(3))
    messages(tmp_path / "messages.csv", rows=70)
    with pytest.raises(CheckpointError, match="an unfinished run on other data"):
        train(given, out=out)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_what_is_stored_answers_as_what_was_trained(place: Path, tmp_path: Path, precision: str) -> None:
    done = train(config(place, epochs=1, precision=precision), out=tmp_path / "adapter")
    assert done.facts.exactness["stored"] == "the same numbers as the model in memory, for 8 inputs"


def test_something_learnt_that_is_not_stored_is_found(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is written without what one of its layers learnt: a complete folder, with other answers."""

    def forgetful(model: Any) -> dict[str, torch.Tensor]:
        state = adapter_state_dict(model)
        name = max(name for name in state if "lora_B" in name)
        return state | {name: torch.zeros_like(state[name])}

    monkeypatch.setattr("veneer.training.finish.adapter_state_dict", forgetful)
    with pytest.raises(
        DriftError, match=r"does not answer as the model that was trained: on 8 inputs its numbers"
    ):
        train(config(place, epochs=3, learning_rate=0.02), out=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_that_stands_there_is_not_replaced_unasked(place: Path, tmp_path: Path) -> None:
    given, out = config(place), tmp_path / "adapter"
    before = two_files(train(given, out=out).path)
    with pytest.raises(UserMistake, match="holds an adapter already"):
        train(given.replace(seed=3), out=out)
    assert two_files(out) == before
    assert two_files(train(given.replace(seed=3), out=out, overwrite=True).path) != before


def test_a_mistake_writes_nothing(place: Path, tmp_path: Path) -> None:
    for wrong in (
        config(place, data={"source": str(tmp_path / "none.csv")}),
        config(place, base="./none"),
        config(place, lora={"target_modules": ["nothing"]}),
        config(place, kind="gpt2", pooling="first"),
    ):
        with pytest.raises(UserMistake):
            train(wrong, out=tmp_path / "adapter")
    with pytest.raises(ConfigError, match="device: 'tpu' is not to be had here"):
        train(config(place, device="tpu"), out=tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_trackers_write_where_it_stays(monkeypatch: pytest.MonkeyPatch, place: Path, tmp_path: Path) -> None:
    import accelerate

    seen: list[Any] = []

    class Recording(accelerate.Accelerator):
        def __init__(self, **given: Any) -> None:
            seen.append((given.pop("log_with"), given.pop("project_dir")))
            super().__init__(**given)

        def init_trackers(self, name: str) -> None:  # type: ignore[override]
            seen.append(name)

        def log(self, values: dict[str, Any], step: int) -> None:  # type: ignore[override]
            seen.append((step, sorted(values)))

    monkeypatch.setattr(accelerate, "Accelerator", Recording)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    train(config(place, trackers=["tensorboard"]), out=tmp_path / "adapter")
    assert seen[:2] == [(["tensorboard"], str(tmp_path / "logs" / "adapter")), "veneer"]
    assert any("train/loss" in entry[1] for entry in seen[2:])
    assert any("evaluation/score" in entry[1] for entry in seen[2:])


def test_where_an_adapter_goes_without_a_name() -> None:
    names = {
        "a/b.csv": "b",
        "sst2": "sst2",
        "sms-spam:x/y": "sms-spam",
        "owner/set": "set",
        "x.y.jsonl": "x.y",
    }
    assert {source: default_out(source).name for source in names} == names


# --- killed ---------------------------------------------------------------------------------------------------------


def in_child(given: TrainConfig, out: Path) -> None:
    """What the killed process does; nothing else runs in it."""
    torch.set_num_threads(1)
    from veneer.training import pages

    pages.report_html = lambda _: ("<html></html>", {})  # type: ignore[assignment]
    train(given, out=out)


def test_killed_ten_times_at_random_moments_it_ends_as_if_left_alone(place: Path, tmp_path: Path) -> None:
    """kill -9 while it reads, trains, stores or evaluates. The slow test of this folder: about half a minute."""
    given = config(place, epochs=25, batch_size=4, checkpoint_every_s=0.05, eval_every=20)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["veneer.training.run", "accelerate", "pyarrow.csv", *_MODEL_FILES])
    chance = random.Random(5)
    out, kills, at = tmp_path / "killed", 0, [0]
    while kills < 10:
        child = processes.Process(target=in_child, args=(given, out))
        child.start()
        wanted = 0 if kills == 3 else at[-1] + chance.randint(1, 12)
        deadline = time.monotonic() + 40
        while step_of(out) < wanted and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.05))
        assert child.is_alive(), f"it ended by itself with {child.exitcode} after {step_of(out)} steps"
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not out.exists()
        kills, at = kills + 1, [*at, step_of(out)]
    assert at == sorted(at)
    assert len(set(at)) > 8  # it went on each time, and not from the beginning
    watching = Watching()
    done = train(given, out=out, reporter=watching)
    assert watching.began == at[-1]
    assert len(watching.steps) > 20
    whole = train(given.replace(checkpoint_every_s=1e9), out=tmp_path / "whole")
    assert two_files(done.path) == two_files(whole.path)
    assert timeless(done.path) == timeless(whole.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


_MODEL_FILES = [
    f"transformers.models.{name}"
    for name in (
        "auto.modeling_auto",
        "auto.tokenization_auto",
        "bert.modeling_bert",
        "bert.tokenization_bert",
    )
]


def step_of(out: Path) -> int:
    """The last step that is saved."""
    found = [int(p.name.split("-")[1]) for p in unfinished(out).glob("checkpoint-*")]
    return max(found, default=0)


def test_killed_while_the_adapter_is_written_the_same_call_writes_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = config(place, checkpoint_every_s=0.001), tmp_path / "adapter"
    whole = train(given, out=tmp_path / "whole")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", fails)
        with pytest.raises(RuntimeError):
            train(given, out=out)
    assert latest_checkpoint(unfinished(out), {}) is not None
    shutil.copytree(whole.path, unfinished(out) / "final")  # left from the attempt before
    done = train(given, out=out)
    assert two_files(done.path) == two_files(whole.path)


# --- several processes ----------------------------------------------------------------------------------------------

_TWO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from veneer.training import pages
pages.report_html = lambda _: ("<html></html>", {})
from veneer.training.config import TrainConfig
from veneer.training.run import train

def alive():
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]

try:
    train(TrainConfig.from_yaml(Path(sys.argv[2])), out=sys.argv[3])
finally:
    assert not alive(), f"threads that would outlive Python: {alive()}"
"""


def test_two_processes_end_as_one(place: Path, tmp_path: Path) -> None:
    """Gradients are sums over both processes' texts: the same to the order of the sum, 1e-5 after 20 steps."""
    given = config(place, max_grad_norm=0.5, class_weights="balanced")
    one = train(given, out=tmp_path / "one")
    (tmp_path / "two.py").write_text(_TWO)
    given.save(tmp_path / "config.yaml")
    source = str(Path(run_module.__file__).parents[2])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command += [str(tmp_path / "two.py"), source, str(tmp_path / "config.yaml"), str(tmp_path / "two")]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = (read_adapter(path).tensors for path in (tmp_path / "two", one.path))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    losses = [[e["loss"] for e in timeless(path)] for path in (tmp_path / "two", one.path)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_revision_of_a_hub_base_goes_with_the_adapter(place: Path, tmp_path: Path) -> None:
    """PEFT's Auto classes and `load` then take the same one (a folder has no revisions and ignores it)."""
    done = train(config(place, base_revision="v2"), out=tmp_path / "adapter")
    assert done.folder.peft_config["revision"] == "v2"
    asked: list[str | None] = []
    plain = loading.load_base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_base", lambda *a, **k: asked.append(k["revision"]) or plain(*a, **k))
        loading.load(done.path)
    assert asked == ["v2"]
