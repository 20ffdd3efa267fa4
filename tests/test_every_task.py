"""Every task the same way: trained, killed, resumed to the same bytes, measured, asked, looked at, read by PEFT.

What a task is tried on stands in `every_task.ENTRIES`. Tolerance against PEFT 2e-4 of the largest number: fp32, packed
sums in another order than padded ones, two layers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch.testing import assert_close

from cli.command import veneer
from every_task import ENTRIES, Entry, typed_bert
from small_runs import no_pictures, two_files
from veneer.data.ragged import Ragged
from veneer.errors import AdapterError
from veneer.evaluation.blocks import Table
from veneer.models.forms import HEAD_CLASSES
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import Encoded, Outputs
from veneer.tasks.evaluating import evaluate
from veneer.tasks.golden import golden_rows
from veneer.tasks.loading import load
from veneer.tasks.merged import merge_adapter
from veneer.tasks.registry import KINDS, kind_named
from veneer.training.config import TrainConfig
from veneer.training.finish import Finished
from veneer.training.loop import StepInfo
from veneer.training.prepare import set_up
from veneer.training.reading import reading_section
from veneer.training.run import Quiet, train

KILLED_AT = 4


class Made:
    """A task trained once, for all tests of its entry."""

    def __init__(self, name: str, folder: Path) -> None:
        self.entry: Entry = ENTRIES[name]
        self.folder = folder
        folder.mkdir()
        self.source, self.base = self.entry.write(folder), self.entry.base(folder / "base")
        given: dict[str, Any] = {
            "data": {"source": str(self.source)},
            "base": str(self.base),
            "lora": {"r": 4},
            "epochs": 2,
            "batch_size": 8,
            "eval_every": 3,
            "precision": "fp32",
            "device": "cpu",
            "checkpoint_every_s": 1e-6,
        }
        self.config = TrainConfig.parse(given | dict(self.entry.changes))
        self.done: Finished = train(self.config, out=folder / "whole")

    def loaded(self) -> Adapted:
        """The adapter as a stranger loads it."""
        return load(self.done.path, precision="fp32")


@pytest.fixture(scope="module", params=ENTRIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        return Made(request.param, tmp_path_factory.mktemp("every") / "task")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures(monkeypatch)


def test_every_task_is_tried() -> None:
    assert {entry.kind for entry in ENTRIES.values()} == {kind.name for kind in KINDS}


def test_the_report_tokenises_no_text_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the lengths that the run has, which are those that a reading of every whole text finds."""
    run = set_up(made.config.replace(max_length=24))
    task, tokenizer = run.adapted.task, run.adapted.base.tokenizer
    for split in run.prepared.splits:
        if len(split):
            found = run.stores[split.name].full_lengths
            assert found is not None
            assert found.tolist() == task.full_lengths(split, tokenizer).tolist()

    def again(*_: object) -> None:
        raise AssertionError("texts are tokenised again")

    monkeypatch.setattr(type(task), "full_lengths", again)
    section = reading_section(run)
    assert section is not None
    lengths = section.blocks[0]
    assert isinstance(lengths, Table)
    assert sum(int(str(row[1]).replace(",", "")) for row in lengths.rows) == len(run.prepared.train)


def timeless(done: Finished) -> dict[str, Any]:
    """veneer.json without what a clock says."""
    facts: dict[str, Any] = done.facts.model_dump(mode="json", exclude={"speed", "facts_hash"})
    return facts | {"baselines": [{**baseline, "seconds": None} for baseline in facts["baselines"]]}


class Stuck(Quiet):
    """Waits for its end after a step."""

    def step(self, info: StepInfo) -> None:
        if info.step == KILLED_AT + 1:  # the checkpoint of the step before is stored
            time.sleep(600)


def in_child(config: TrainConfig, out: Path) -> None:
    """What the killed process does; nothing else runs in it."""
    torch.set_num_threads(1)
    train(config, out=out, reporter=Stuck())


def kill_in_the_middle(config: TrainConfig, out: Path) -> None:
    """Start a run in a process of its own and end it by kill -9 while it trains."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["veneer.training.run", "accelerate", "pyarrow.csv", "peft"])
    child = processes.Process(target=in_child, args=(config, out))
    child.start()
    assert child.pid is not None
    wanted, until = (
        out.parent / f".{out.name}.run" / f"checkpoint-{KILLED_AT:08d}" / "state.json",
        time.monotonic() + 300,
    )
    while not wanted.is_file():
        assert child.is_alive(), "the run ended before it was killed"
        assert time.monotonic() < until, "no checkpoint came"
        time.sleep(0.02)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def test_killed_and_resumed_it_ends_in_the_same_bytes(made: Made, tmp_path: Path) -> None:
    class Seen(Quiet):
        began = -1

        def set_up(self, run: Any, resumed_at: int) -> None:  # noqa: ARG002
            self.began = resumed_at

    out, seen = tmp_path / "killed", Seen()
    kill_in_the_middle(made.config, out)
    assert not out.exists()
    done = train(made.config, out=out, reporter=seen)
    assert seen.began >= KILLED_AT
    assert two_files(done.path) == two_files(made.done.path)
    assert timeless(done) == timeless(made.done)


def test_the_task_is_inferred_and_kept(made: Made) -> None:
    facts = made.done.facts
    assert facts.task == made.entry.kind
    (choice,) = [c for c in facts.data["choices"] if c["what"] == "task"]
    assert choice["reason"]
    resolved = TrainConfig.from_yaml(made.done.path / "config.yaml")
    assert resolved.task == made.entry.kind
    assert made.loaded().task.facts() == facts.task_facts


def test_measured_again(made: Made) -> None:
    """On all rows, those of training too, which is said."""
    adapted = made.loaded()
    again = evaluate(adapted, made.source)
    assert again.rows == sum(made.done.facts.data["sizes"].values())
    assert any("was trained on" in warning for warning in again.warnings)
    found = again.metrics.summary()
    assert found.primary.key == made.done.measured.metrics["test"].summary().primary.key
    assert all(np.isfinite(score.value) for score in found.scores)
    told = veneer("evaluate", made.done.path, made.source, "--json", "--precision", "fp32")
    assert told.code == 0, told.err
    assert told.json["metrics"][found.primary.key] == pytest.approx(found.primary.value, abs=1e-9)
    plain = veneer("evaluate", made.done.path, made.source, "--precision", "fp32")
    assert plain.code == 0, plain.err
    for score in found.scores:
        assert score.text in plain.out
    for one in [*told.json["metrics"].get("per_label", ()), *told.json["metrics"].get("per_type", ())]:
        assert f"\n{one['label']} " in plain.out


def test_it_answers_alone_and_by_command(made: Made) -> None:
    adapted = made.loaded()
    answers = adapted.predict(made.entry.inputs)
    assert len(answers) == len(made.entry.inputs)
    for answer in answers:
        assert set(adapted.task.answer_keys) <= set(answer)
    told = veneer("predict", made.done.path, *made.entry.command, "--json", "--precision", "fp32")
    assert told.code == 0, told.err
    (found,) = told.json["answers"]
    assert {key: found[key] for key in answers[0]} == answers[0]
    plain = veneer("predict", made.done.path, *made.entry.command, "--precision", "fp32")
    rows = len(found["entities"]) if made.entry.kind == "entities" else 1
    assert (plain.code, len(plain.out.splitlines())) == (0, rows), plain.err
    every = veneer(
        "predict", made.done.path, *made.entry.command, "--all-probabilities", "--precision", "fp32"
    )
    if made.entry.kind == "classification":
        assert (every.code, every.out.count("\t") > plain.out.count("\t")) == (0, True)
    else:
        assert every.code != 0
        assert f"an adapter for {made.entry.kind} gives a text no labels to choose from" in every.err


def test_a_file_is_answered_row_by_row(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    told = veneer(
        "predict", made.done.path, "--file", made.source, "--out", out, "--json", "--precision", "fp32"
    )
    assert told.code == 0, told.err
    assert told.json["rows"] == len(out.read_text().splitlines())
    assert told.json["rows"] == made.done.facts.data["counts"].get("rows", told.json["rows"])


def test_looked_at(made: Made) -> None:
    told = veneer("inspect", made.done.path, "--json")
    assert (told.code, told.json["task"]) == (0, made.entry.kind)
    shown = veneer("inspect", made.done.path)
    assert shown.code == 0, shown.err
    assert made.entry.kind in shown.out
    base = veneer("inspect", made.base, "--task", made.entry.kind, "--r", "4", "--json")
    assert base.code == 0, base.err
    trained = made.loaded().report.parameters.trainable
    assert told.json["parameters"] == trained
    if made.entry.kind in ("regression", "entities"):
        base = veneer(
            "inspect", made.base, "--task", made.entry.kind, "--r", "4", "--json",
            "--labels", len(made.loaded().task.head.labels),
        )  # fmt: skip
    if made.loaded().task.head.form != "sequence":
        assert base.json["trainable"] == trained


def test_previewed(made: Made) -> None:
    told = veneer("preview", made.source, "--base", made.base, "--json")
    assert told.code == 0, told.err
    assert told.json["task"] == made.entry.kind
    first = told.json["examples"][0]
    assert first["tokens"]
    assert first["length"] == len(first["tokens"])
    plain = veneer("preview", made.source, "--base", made.base)
    assert plain.code == 0
    assert "\x1b[" not in plain.out


def peft_model(made: Made) -> Any:
    """The adapter on its base, by transformers and PEFT alone."""
    spec = made.loaded().task.head
    auto = getattr(transformers, HEAD_CLASSES[spec.form].auto)
    base = auto.from_pretrained(made.base, **({"num_labels": len(spec.labels)} if spec.labels else {}))
    return PeftModel.from_pretrained(base, made.done.path).eval()


def by_peft(made: Made, encoded: Encoded, adapted: Adapted) -> list[np.ndarray]:
    """All numbers of each feature, unpacked and without padding, by PEFT's model."""
    whole: Any = peft_model(made)
    model = whole.base_model if adapted.task.head.form == "span" else whole  # else PEFT drops the token types
    found = []
    for place in range(len(encoded)):
        ids = torch.as_tensor(np.asarray(encoded[place]).astype(np.int64))[None]
        types = (
            {}
            if encoded.segments is None
            else {
                "token_type_ids": torch.as_tensor(np.asarray(encoded.segments[place]).astype(np.int64))[None]
            }
        )
        with torch.no_grad():
            out = model(input_ids=ids, **types)
        if adapted.task.head.form == "span":
            found.append(torch.stack([out.start_logits, out.end_logits], -1)[0].numpy())
        elif adapted.task.head.form == "tokens":
            read = np.flatnonzero(np.asarray(encoded.targets[place]) != -100)  # type: ignore[index]
            found.append(out.logits[0, read].numpy())
        elif adapted.task.head.form == "causal":
            found.append(_losses(out.logits[0], np.asarray(encoded.targets[place])))  # type: ignore[index]
        else:
            found.append(out.logits[0].numpy())
    return found


def _losses(logits: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    """The loss of each labelled token."""
    read = np.flatnonzero(targets != -100)
    losses = torch.nn.functional.cross_entropy(
        logits[read], torch.as_tensor(targets[read]).long(), reduction="none"
    )
    return losses.numpy()


def test_peft_gives_the_same_numbers_and_the_same_answers(made: Made) -> None:
    adapted = made.loaded()
    native = HEAD_CLASSES[adapted.task.head.form].peft_task
    whole = kind_named(made.entry.kind).as_peft(adapted.task)  # else its answers are more than PEFT's numbers
    assert made.done.folder.peft_config["task_type"] == (native if whole else None)
    encoded = adapted.encode_inputs(made.entry.golden or made.entry.inputs)
    assert (encoded.segments is not None) == (made.entry.base is typed_bert)
    ours: Outputs = adapted.outputs_of(encoded)
    theirs = by_peft(made, encoded, adapted)
    for place, expected in enumerate(theirs):
        found = ours[place]
        if adapted.task.head.form == "causal":
            found = found[:, 0]
        scale = max(1.0, float(np.abs(expected).max()))
        assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=2e-4 * scale)
    expected_answers = adapted.predict(made.entry.inputs)
    if adapted.task.head.form == "causal":
        assert [written_by_peft(made, adapted, one) for one in made.entry.inputs] == expected_answers
        return
    together = np.stack(theirs) if adapted.task.per == "text" else Ragged.of(theirs, np.float32)
    answers = adapted.task.answers(together, encoded)
    for answer, expected in zip(answers, expected_answers, strict=True):
        same_answer(answer, expected)


def same_answer(found: Any, expected: Any) -> None:
    """Equal, whatever is nested in them, fractions to 1e-3."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same_answer(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same_answer(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)


def written_by_peft(made: Made, adapted: Adapted, asked: Any) -> dict[str, str]:
    """What PEFT's model writes greedily after a prompt, by transformers' own `generate`."""
    tokenizer: Any = adapted.base.tokenizer
    ids = torch.as_tensor(np.asarray(adapted.encode_inputs([asked])[0]).astype(np.int64))[None]
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=adapted.task.answer_tokens,  # type: ignore[attr-defined]
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    found = peft_model(made).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
    )
    return {"answer": tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)}


def test_the_stored_answers_are_replayed(made: Made) -> None:
    golden = made.done.facts.golden
    assert golden is not None
    assert 1 <= len(golden.inputs) <= 8
    found = golden_rows(made.loaded(), golden.inputs)
    for ours, stored in zip(found, golden.outputs, strict=True):
        assert_close(torch.as_tensor(ours).double(), torch.tensor(stored).double(), rtol=1e-4, atol=1e-4)


def test_a_folder_of_peft_answers_too(made: Made, tmp_path: Path) -> None:
    """The same two files without veneer.json."""
    adapted = made.loaded()
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (bare / name).write_bytes((made.done.path / name).read_bytes())
    if not kind_named(made.entry.kind).as_peft(adapted.task):  # a decoder's head has no bias to hold the mean
        with pytest.raises(AdapterError, match=r"lacks its veneer\.json"):
            load(bare, precision="fp32")
        return
    again = load(bare, precision="fp32")
    assert again.task.head.form == adapted.task.head.form


def test_merged_it_answers_the_same(made: Made, tmp_path: Path) -> None:
    """The full model by itself, loaded again: transformers' class fills every weight of it."""
    done = merge_adapter(made.done.path, tmp_path / "model")
    assert done.drift.texts == len(made.done.facts.golden.inputs)  # type: ignore[union-attr]
    assert done.drift.changed == 0
    assert done.drift.largest < 2e-4  # fp32, numbers of size one to ten
    auto = getattr(transformers, HEAD_CLASSES[made.loaded().base.spec.form].auto)
    _, told = auto.from_pretrained(done.path, output_loading_info=True)
    assert (list(told["missing_keys"]), list(told["unexpected_keys"])) == ([], [])
