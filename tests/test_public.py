"""The public face: what `import veneer` shows, what it costs, and `veneer.train` from a few words."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import veneer
from bases import tiny_bert
from veneer.data import DataConfig
from veneer.errors import ConfigError
from veneer.lora import LoraConfig
from veneer.training.config import TrainConfig

SOURCE = Path(veneer.__file__)


def test_all_is_what_is_there() -> None:
    assert veneer.__all__ == sorted(veneer.__all__)
    for name in veneer.__all__:
        assert getattr(veneer, name) is not None, name
    assert set(veneer._HOMES) | {"__version__"} == set(veneer.__all__)
    assert set(veneer.__all__) <= set(dir(veneer))
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = veneer.atach


def test_type_checkers_see_the_same_names_in_the_same_places() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == veneer._HOMES


def test_importing_it_costs_nothing() -> None:
    code = "import sys; before = len(sys.modules); import veneer; print(len(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(SOURCE.parents[1])},
    )
    assert int(done.stdout) < 100  # the typing module and its like; torch alone brings more than a thousand


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"win a free prize {i},spam\nthanks for the help {i},ham\n" for i in range(30)]
    file = tmp_path / "messages.csv"
    file.write_text("text,label\n" + "".join(rows))
    return file


def test_train_load_predict_in_a_few_lines(table: Path, tmp_path: Path) -> None:
    quick = {"base": str(tiny_bert(tmp_path / "base")), "precision": "fp32", "baselines": False}
    done = veneer.train(table, out=tmp_path / "a", epochs=1, lora={"r": 4}, data={"seed": 3}, **quick)
    assert done.path == tmp_path / "a"
    assert done.facts.training["epochs"] == 1
    assert done.facts.training["lora"]["r"] == 4
    assert done.facts.training["lora"]["lora_alpha"] == 8  # 2 r
    assert done.facts.training["data"]["seed"] == 3
    assert done.verdict.word == "unknown"  # without baselines
    assert veneer.load(done.path).predict(["win a prize"])[0]["label"] in ("spam", "ham")


def test_train_takes_configurations_and_settings_win(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("veneer.training.api.run", lambda config, **_: seen.append(config))
    whole = TrainConfig.parse({"data": {"source": str(table), "max_rows": 9}, "epochs": 7, "base": "x"})
    veneer.train(whole, base="y", data={"max_rows": 8})
    veneer.train(DataConfig(source=str(table), max_rows=9), lora=LoraConfig(r=2, target_modules=["query"]))
    first, second = seen
    assert (first.epochs, first.base, first.data.max_rows, first.data.source) == (7, "y", 8, str(table))
    assert (second.data.max_rows, second.lora["r"], second.lora["target_modules"]) == (9, 2, ["query"])


def test_train_refuses_what_it_does_not_know(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'epoch'.*'epochs'"):
        veneer.train(table, out=tmp_path / "a", epoch=3)
    with pytest.raises(ConfigError, match=r"'data.text_colum'.*'text_column'"):
        veneer.train(table, out=tmp_path / "a", data={"text_colum": "text"})
    with pytest.raises(ConfigError, match="was given int"):
        veneer.train(3)  # type: ignore[arg-type]
