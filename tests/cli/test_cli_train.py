"""`veneer train`: the result, the configuration that flags make, and mistakes of people."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest import mock

import pytest
import yaml
from command import veneer
from docs_json import documented
from tiny_adapter import Trained

from veneer.cli.options import assignments, nested
from veneer.cli.settings import ADAPTER, BASE, DATA, TRAINING, names_or_pattern
from veneer.data.config import DataConfig
from veneer.lora import LoraConfig
from veneer.tasks.registry import KINDS
from veneer.training.config import TrainConfig


def test_the_json_object_has_the_documented_keys(trained: Trained) -> None:
    said = trained.said
    assert said["adapter"] == str(trained.adapter)
    assert said["base"] == str(trained.base)
    assert said["task"] == "classification"
    assert said["labels"] == ["ham", "spam"]
    for split in ("validation", "test"):
        found = said["metrics"][split]
        for key in ("accuracy", "macro_f1"):
            bounds = found["intervals"][key]
            assert bounds["low"] <= found[key] <= bounds["high"]
    assert said["metrics"]["test"]["accuracy"] > 0.8  # the words tell the labels apart; a coin gives 0.5
    assert [b["name"] for b in said["baselines"]] != []
    assert said["seconds"] > 0
    assert said["texts_per_second"] > 0
    assert Path(said["report"]).is_file()
    assert Path(said["config"]).is_file()


def test_every_documented_key_is_there_and_the_other_way_round(trained: Trained) -> None:
    assert set(trained.said) == documented("train")


def test_a_dry_run_gives_its_object_on_standard_output_alone(trained: Trained) -> None:
    done = veneer("train", trained.table, "--dry-run", "--json", *trained.tiny)
    assert done.code == 0, done.err
    assert done.json["fits"] is True
    assert "total_seconds" not in done.err


def test_what_was_inferred_is_told_on_standard_error(trained: Trained) -> None:
    told = " ".join(trained.told.split())
    assert "text column text" in told
    assert "stratified by label" in told
    assert "adapting 12 layers with r 4" in told
    assert "validation accuracy" in told


def test_the_result_for_people_fits_into_80_columns(trained: Trained, tmp_path: Path) -> None:
    done = veneer("train", trained.table, "--out", tmp_path / "a", *trained.tiny)
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert "95 % interval" in done.out
    assert re.search(r"texts/s, [\d,]+ tokens/s, 1 thread$", done.out, re.MULTILINE)
    assert "veneer predict" in done.out
    assert "report.html" in done.out


def test_quiet_tells_the_result_only(trained: Trained, tmp_path: Path) -> None:
    done = veneer("train", trained.table, "--out", tmp_path / "a", "--quiet", *trained.tiny)
    assert done.code == 0
    assert done.err == ""
    assert "test" in done.out


def test_a_file_is_read_and_flags_win_over_it(trained: Trained, tmp_path: Path) -> None:
    written = yaml.safe_load((trained.adapter / "config.yaml").read_text())
    written |= {"epochs": 7, "baselines": False}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(written))
    out = tmp_path / "again"
    done = veneer(
        "train", "--config", file, "--epochs", 1, "--set", "data.max_rows=60", "--out", out, "--json"
    )
    assert done.code == 0, done.err
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert resolved["epochs"] == 1
    assert resolved["data"]["max_rows"] == 60
    assert resolved["lora"]["r"] == 4  # from the file
    assert sum(done.json["rows"].values()) == 60


def test_an_adapter_is_not_replaced_unasked(trained: Trained) -> None:
    before = (trained.adapter / "veneer.json").read_bytes()
    done = veneer("train", trained.table, "--out", trained.adapter, *trained.tiny)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert (trained.adapter / "veneer.json").read_bytes() == before


MISTAKES = [
    (["--text-column", "texxt"], "no column 'texxt'", "'text'"),
    (["--label-column", "lable"], "no column 'lable'", "'label'"),
    (["--set", "lora.use_rslroa=true"], "'use_rslroa'", "'use_rslora'"),
    (["--set", "batch_sise=4"], "'batch_sise'", "'batch_size'"),
    (["--set", "data.max_rowz=4"], "max_rowz", "'max_rows'"),
    (["--set", "epochs"], "'epochs'", "key=value"),
    (["--batch-size", "0"], "--batch-size is 0", "greater than or equal to 1"),
    (["--epochs", "0"], "--epochs is 0", "greater than or equal to 1"),
    (["--label-smoothing", "1.5"], "--label-smoothing is 1.5", "less than 1"),
    (["--max-length", "1"], "--max-length is 1, and 2 special tokens", "expected more"),
    (["--r", "0"], "--r 0 can't be used", "at least 1"),
    (["--validation-fraction", "0.9"], "--validation-fraction and --test-fraction add up to 1.1", "below 1"),
    (["--column", "question=text"], "question=text: the task classification", "another task's"),
    (["--loss", "all"], "--loss: the task classification", "leave it out"),
    (["--encoding", "utf-16"], "is not utf-16", "Leave the encoding out"),
    (["--keep", "sometimes"], "'sometimes'", "'best', 'last'"),
    (["--epochs", "many"], "'--epochs'", "integer"),
    (["--batch-sise", "4"], "--batch-sise", "--batch-size"),
    (["--target-modules", "query,valeu"], "'valeu' matches no module", "'value'"),
    (["--device", "cuda:99"], "cuda", "cpu"),
    (["--config", "nowhere.yaml"], "nowhere.yaml", "There is no file"),
]


@pytest.mark.parametrize(("flags", "given", "mend"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_one_paragraph_with_the_mend(
    trained: Trained, tmp_path: Path, flags: list[str], given: str, mend: str
) -> None:
    done = veneer("train", trained.table, "--base", trained.base, "--out", tmp_path / "a", *flags)
    assert done.code == 2
    assert done.out == ""
    assert given in done.err
    assert mend in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "a").exists()


def test_errors_name_flags_where_flags_were_given(trained: Trained, tmp_path: Path) -> None:
    """A key of a file keeps its name; a verb advises no flag that it does not have."""
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: 0\ndata:\n  max_rows: 0\n", encoding="utf-8")
    done = veneer("train", trained.table, "--config", file, "--max-rows", "-1")
    assert done.code == 2
    assert "'batch_size' is 0" in done.err
    assert "--max-rows is -1" in done.err
    holes = tmp_path / "holes.csv"
    rows = [f"a text {i},{['ham', 'spam', ''][i % 3]}\n" for i in range(30)]
    holes.write_text("text,label\n" + "".join(rows), encoding="utf-8")
    assert "leave them out with --on-missing-label drop" in veneer("train", holes).err
    assert veneer("evaluate", trained.adapter, holes).err.endswith("Fill them in, or remove them.\n")
    holes.write_text('text,label\n"never closed,ham\nanother,spam\n', encoding="utf-8")
    assert "(--set data.quoting=no)" in veneer("preview", holes).err
    assert "quoting" not in veneer("predict", trained.adapter, "--file", holes).err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_tracker_that_is_not_there_is_refused(
    trained: Trained, tmp_path: Path, dry: tuple[str, ...]
) -> None:
    """accelerate itself would leave it out without a word."""
    given = ("train", trained.table, "--out", tmp_path / "a", *trained.tiny, *dry, "--tracker")
    unknown = veneer(*given, "tensorbord")
    assert unknown.code == 2
    assert "--tracker: there is no tracker 'tensorbord'. Did you mean 'tensorboard'?" in unknown.err
    with mock.patch("accelerate.tracking.get_available_trackers", list):
        absent, every = veneer(*given, "mlflow"), veneer(*given, "all")
    assert "mlflow is not installed, so nothing would be tracked" in absent.err
    assert "no tracker is installed" in every.err
    assert (absent.code, every.code) == (2, 2)
    assert not list(tmp_path.iterdir())


def test_a_base_given_from_here_is_found_from_elsewhere(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Veneer and by PEFT, which looks for the stored name from its own working directory."""
    import peft

    models, elsewhere, adapter = tmp_path / "models", tmp_path / "elsewhere", tmp_path / "adapter"
    shutil.copytree(trained.base, models / "base")
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    made = veneer("train", trained.table, "--out", adapter, "--base", "models/base", *trained.tiny[2:])
    assert made.code == 0, made.err
    monkeypatch.chdir(elsewhere)
    assert veneer("predict", adapter, "win a prize", "--json").code == 0
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(adapter), num_labels=2)
    assert theirs.peft_config["default"].r == 16
    (models / "base").rename(models / "moved")
    gone = veneer("predict", adapter, "win a prize")
    assert gone.code == 2
    assert f"belongs to the base {models / 'base'}, which can't be had: There is no folder" in gone.err
    assert "say where with --base" in gone.err
    assert veneer("predict", adapter, "win a prize", "--base", "../models/moved", "--json").code == 0


def test_a_missing_file_and_no_source_at_all(tmp_path: Path) -> None:
    missing = veneer("train", tmp_path / "nope.csv")
    assert missing.code == 2
    assert "nope.csv" in missing.err
    nothing = veneer("train", "--json")
    assert nothing.code == 2
    assert nothing.json["error"]["message"].startswith("nothing to train on")


def test_flags_that_are_not_given_say_nothing() -> None:
    every = (*DATA, *BASE, *ADAPTER, *TRAINING)
    assert nested(every, {flag.parameter: (False if flag.kind is bool else None) for flag in every}) == {}
    assert nested(every, {"epochs": 0, "lora_dropout": 0.0, "no_baselines": True}) == {
        "epochs": 0,
        "lora": {"lora_dropout": 0.0},
        "baselines": False,
    }


def test_every_flag_is_a_field_of_its_configuration() -> None:
    fields: dict[str, Any] = {
        **{f"data.{name}": field for name, field in DataConfig.model_fields.items()},
        **{f"lora.{name}": field for name, field in LoraConfig.model_fields.items()},
        **{f"options.{name}": field for kind in KINDS for name, field in kind.options.model_fields.items()},
        **TrainConfig.model_fields,
    }
    keys = [flag.key for flag in (*DATA, *BASE, *ADAPTER, *TRAINING)]
    assert len(set(keys)) == len(keys) > 40
    assert [key for key in keys if key not in fields] == []
    for flag in (*DATA, *BASE, *ADAPTER, *TRAINING):
        if get_origin(flag.kind) is Literal:
            taken = get_args(fields[flag.key].annotation)
            assert set(get_args(flag.kind)) <= set(taken), flag.name
            # what is resolved may say more than what is asked for: int8 names its compute dtype
            assert all(more.startswith("int8-") for more in set(taken) - set(get_args(flag.kind))), flag.name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("all-linear", "all-linear"),
        ("query", ["query"]),
        ("query, value", ["query", "value"]),
        ("attention.self.query", ["attention.self.query"]),
        (r".*layer\.[01]\..*query", r".*layer\.[01]\..*query"),
    ],
)
def test_target_modules_are_names_or_a_pattern(written: str, meant: object) -> None:
    assert names_or_pattern(written) == meant


def test_values_of_set_are_json_or_yaml_or_text() -> None:
    given = ["a=1e-3", "b=true", "c=null", "d=[x, y]", "e=plain words", "f.g.h='7'", 'i={"j": 1}']
    assert assignments(given) == {
        "a": 1e-3,
        "b": True,
        "c": None,
        "d": ["x", "y"],
        "e": "plain words",
        "f": {"g": {"h": "7"}},
        "i": {"j": 1},
    }
