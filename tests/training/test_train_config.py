"""One strict configuration, from Python, flags or YAML, that is written and read again without a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from veneer.errors import ConfigError
from veneer.training.config import TrainConfig, merged

DATA: dict[str, Any] = {"data": {"source": "a.csv"}}


def test_yaml_gives_the_same_configuration_back(tmp_path: Path) -> None:
    config = TrainConfig.parse(
        DATA
        | {"lora": {"r": 4, "target_modules": ["query", "value"]}, "epochs": 3, "trackers": ["tensorboard"]}
    )
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == config


def test_flags_win_over_the_file_also_inside(tmp_path: Path) -> None:
    TrainConfig.parse(DATA | {"lora": {"r": 4}, "epochs": 3}).save(tmp_path / "config.yaml")
    found = TrainConfig.from_yaml(tmp_path / "config.yaml", {"epochs": 5, "data": {"seed": 7}})
    assert (found.epochs, found.data.seed, found.data.source, found.lora["r"]) == (5, 7, "a.csv", 4)


@pytest.mark.parametrize("given", [0, -1, True, 2.5, "many", 4096])
def test_threads_are_a_number_or_auto(given: Any) -> None:
    assert TrainConfig.parse(DATA | {"threads": 3}).threads == 3
    with pytest.raises(ConfigError, match=f"threads.*{given}.*1 to 1024") as caught:
        TrainConfig.parse(DATA | {"threads": given})
    assert "faults" not in str(caught.value)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no file .*none\.yaml"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


def test_lora_defaults_of_a_run() -> None:
    found = TrainConfig.parse(DATA).lora
    assert found["r"] == 16
    assert found["target_modules"] == "all-linear"
    assert found["lora_alpha"] == 2 * found["r"]
    assert TrainConfig.parse(DATA | {"lora": {"r": 5}}).lora["lora_alpha"] == 10
    assert TrainConfig.parse(DATA | {"lora": {"r": 5, "lora_alpha": 1}}).lora["lora_alpha"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'. Did you mean 'epochs'"),
        (
            {"data": {"source": "a", "text_colum": "x"}},
            "unknown key 'data.text_colum'. Did you mean 'text_column'",
        ),
        ({"lora": {"rank": 3}}, "LoraConfig has no field 'rank'"),
        ({"lora": {"r": 0}}, "r=0 can't be used"),
        ({"label_smoothing": 1.0}, "'label_smoothing' is 1.0"),
        ({"learning_rate": -1}, "'learning_rate' is -1"),
        ({"learning_rate": float("nan")}, "'learning_rate' is nan"),
        ({"pooling": "max"}, "'pooling' is 'max'"),
        ({"keep": "worst"}, "'keep' is 'worst'"),
    ],
)
def test_a_wrong_field_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse(DATA | given)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        TrainConfig.from_yaml(tmp_path / "config.yaml")


def test_merging_changes_neither() -> None:
    below, above = {"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}
    assert merged(below, above) == {"a": 1, "b": {"c": 2, "d": 3}}
    assert (below, above) == ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}})
