"""A number for each text: the loss of transformers, the folded head, what PEFT then answers, and what is refused."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch.testing import assert_close

from every_task import numbers
from small_runs import config, no_pictures
from veneer.data.config import DataConfig
from veneer.data.sources import Source
from veneer.errors import ConfigError
from veneer.evaluation.blocks import Paragraph, Spans, Table
from veneer.tasks.base import Encoded
from veneer.tasks.encoding import TokenLists
from veneer.tasks.inference import infer_kind
from veneer.tasks.loading import load
from veneer.tasks.previewing import preview_source
from veneer.tasks.regression import KIND, Regression
from veneer.training.config import TrainConfig
from veneer.training.finish import Finished
from veneer.training.prepare import set_up
from veneer.training.reading import reading_section
from veneer.training.run import train

TEXTS = ["love the film 3", "an awful film, refund"]


def encoded(targets: list[float]) -> Encoded:
    return Encoded(TokenLists([[1]] * len(targets)), np.array(targets))


def test_the_loss_is_transformers_on_standardised_numbers() -> None:
    task, given = Regression("first", mean=10.0, scale=4.0), [2.0, 10.0, 18.0]
    outputs = torch.tensor([[0.5], [0.1], [-1.0]])
    expected = torch.nn.MSELoss()(outputs.squeeze(), (torch.tensor(given) - 10) / 4)
    assert_close(task.loss(outputs, task.collate(np.array(given))), expected)
    assert task.evaluation_loss(outputs.numpy(), encoded(given)) == pytest.approx(float(expected), abs=1e-6)
    assert [answer["value"] for answer in task.answers(outputs.numpy())] == [12.0, 10.4, 6.0]


def test_the_deciding_figure_and_its_error() -> None:
    draw = np.random.default_rng(0)
    given = draw.normal(size=400)
    said = (given + 0.5 * draw.normal(size=400)).astype(np.float32)[:, None]
    task = Regression("first")
    found, metrics = task.score(said, encoded(given.tolist())), task.metrics(said, encoded(given.tolist()))
    primary = metrics.summary().primary
    assert found.value == pytest.approx(primary.value, abs=1e-6)
    assert primary.interval is not None
    width = (primary.interval.high - primary.interval.low) / 2 / 1.96
    assert found.standard_error == pytest.approx(
        width, rel=0.35
    )  # the spread of the given numbers is kept fixed


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("number")
    given = config(folder, kind=request.param, data={"source": str(numbers(folder))}, baselines=True)
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        return train(given, out=folder / "adapter")


def test_what_is_stored_gives_the_number_itself(done: Finished) -> None:
    """A head with a bias takes mean and spread; without one the mean stays beside it, and PEFT is not told a task."""
    adapted = load(done.path, precision="fp32")
    task: Any = adapted.task
    causal = adapted.base.causal
    assert (task.scale, task.mean == 0.0) == (1.0, not causal)
    assert (done.folder.peft_config["task_type"] is None) == causal
    base = transformers.AutoModelForSequenceClassification.from_pretrained(adapted.base.folder, num_labels=1)
    base.config.pad_token_id = base.config.pad_token_id or 0
    model = PeftModel.from_pretrained(base, done.path).eval()
    values = [answer["value"] for answer in adapted.predict(TEXTS)]
    for text, value in zip(TEXTS, values, strict=True):
        with torch.no_grad():
            ids = torch.tensor([adapted.base.tokenizer(text)["input_ids"]])
            number = float(model(input_ids=ids).logits[0, 0]) + task.mean
        assert number == pytest.approx(value, rel=1e-4)
    assert 15 < values[0] < 35  # the unit of the file, 20 to 30
    named = [baseline["name"] for baseline in done.facts.baselines]
    assert named[0] == "always saying the mean"
    assert len(named) == 3


def test_the_code_of_the_model_card_gives_the_number(done: Finished) -> None:
    adapted = load(done.path, precision="fp32")
    card = (done.path / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    code = code.replace("path/to/this/folder", str(done.path)).replace("the text to classify", TEXTS[0])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "card", "exec"), {"__name__": "card"})
    (found,) = ast.literal_eval(printed.getvalue().splitlines()[-1])
    assert found == pytest.approx(adapted.predict(TEXTS[:1])[0]["value"], rel=1e-4)


def test_the_report_shows_what_was_read(tmp_path: Path) -> None:
    source = numbers(tmp_path)
    run = set_up(config(tmp_path, data={"source": str(source)}))
    section = reading_section(run)
    assert section is not None
    assert (section.title, section.place) == ("What the model reads", "end")
    text = run.prepared.train.texts()[0]
    spans = [block for block in section.blocks if isinstance(block, Spans)]
    shown = "".join(piece for piece, kind in spans[0].pieces if kind == "")
    assert shown.replace(" ", "") == text.replace(" ", "")


def test_the_report_has_the_lengths_that_the_preview_has(tmp_path: Path) -> None:
    source = numbers(tmp_path)
    run = set_up(config(tmp_path, data={"source": str(source)}))
    section = reading_section(run)
    assert section is not None
    table = section.blocks[0]
    assert isinstance(table, Table)
    told = [int(str(row[1])) for row in table.rows]
    assert sum(told) == len(run.prepared.train)
    seen = preview_source(run.config.data, run.config.base, task=run.config.task).preview
    assert told == [n for *_, n in seen.bins()]
    assert [str(row[0]) for row in table.rows] == [f"{low} to {high}" for low, high, _ in seen.bins()]
    said = [block.text.lower() for block in section.blocks if isinstance(block, Paragraph)]
    assert said[: len(seen.says())] == [f"{line}." for line in seen.says()]
    assert seen.says()[0].endswith(f"longest {max(run.stores['train'].lengths)} tokens")
    assert seen.says()[1].startswith("none longer than the ")


def test_inference_says_why_and_can_be_told_otherwise(tmp_path: Path) -> None:
    source = Source(DataConfig(source=str(numbers(tmp_path))))
    kind, choice = infer_kind("auto", source, "no/such-base-here")
    assert choice is not None
    assert (kind, choice.value, choice.reason) == (
        KIND,
        "regression",
        "'score' holds numbers that are not whole",
    )
    assert infer_kind("classification", source, "x")[0].name == "classification"
    with pytest.raises(ConfigError, match=r"no task 'regresion'. Did you mean 'regression'"):
        TrainConfig.parse({"data": {"source": "x"}, "task": "regresion"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_weights": "balanced"}, "class_weights: the task regression"),
        ({"label_smoothing": 0.1}, "label_smoothing: the task regression"),
        ({"options": {"template": "x"}}, "options.template: the task regression"),
    ],
)
def test_settings_of_other_tasks_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up(config(tmp_path, data={"source": str(numbers(tmp_path))}, **more))


def test_labels_settings_are_refused(tmp_path: Path) -> None:
    data = {"source": str(numbers(tmp_path)), "label_separator": "|"}
    with pytest.raises(ConfigError, match="multi_label and label_separator are for labels"):
        set_up(config(tmp_path, data=data, task="regression"))
