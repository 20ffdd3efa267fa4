"""LoraConfig: PEFT's names and defaults, nothing unknown, nothing impossible."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

import veneer.lora
from veneer.errors import ConfigError
from veneer.lora import LoraConfig


def test_names_and_defaults_are_pefts() -> None:
    theirs = peft.LoraConfig().to_dict()
    ours = LoraConfig().to_dict()
    assert set(ours) - set(theirs) == {"qkv_slices"}
    for field in set(ours) - {"qkv_slices"}:
        assert ours[field] == theirs[field], field


@pytest.mark.parametrize(
    ("given_field", "says"),
    [
        ({"lora_alhpa": 3}, "no field 'lora_alhpa'.*'lora_alpha'"),
        ({"fan_in_fan_out": True}, "no field 'fan_in_fan_out'.*Leave it out"),
        ({"r": 0}, "r=0.*at least 1"),
        ({"r": "8"}, "r='8'.*integer"),
        ({"r": True}, "r=True.*integer"),
        ({"lora_alpha": -1}, "lora_alpha=-1.*above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan.*above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0.*not including, 1"),
        ({"bias": "some"}, "bias='some'.*'none', 'lora_only' or 'all'"),
        ({"target_modules": []}, "target_modules is an empty list"),
        ({"target_modules": ["q", "q"]}, "names 'q' twice"),
        ({"target_modules": [""]}, "an empty name"),
        ({"target_modules": "("}, r"'\(' is not a regular expression"),
        ({"target_modules": ""}, "target_modules is an empty text"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern.*not a regular expression"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0"),
        ({"alpha_pattern": {"q": 0}}, r"alpha_pattern\['q'\]=0"),
        ({"layers_to_transform": -1}, "layers_to_transform=-1"),
        ({"layers_to_transform": [1, 1]}, "different"),
        ({"layers_to_transform": 1, "target_modules": "all-linear"}, "list of target_modules"),
        ({"layers_pattern": "h"}, "needs layers_to_transform"),
        ({"init_lora_weights": "gausian"}, "'gausian'.*'gaussian'"),
        ({"init_lora_weights": "pissa_niter_x"}, "pissa_niter_N"),
        ({"qkv_slices": ["w"]}, r"qkv_slices.*'q', 'k' or 'v'"),
        ({"qkv_slices": ["q"], "init_lora_weights": "pissa"}, "don't go together"),
        ({"modules_to_save": "classifier"}, "modules_to_save='classifier'.*tuple"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_an_error_that_says_so(given_field: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LoraConfig(**given_field)


def test_it_is_frozen() -> None:
    config = LoraConfig()
    with pytest.raises(Exception, match="frozen"):
        config.r = 4  # type: ignore[misc]


def test_all_wrong_types_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"r='x'.*bias='y'"):
        LoraConfig(r="x", bias="y")  # type: ignore[arg-type]


def test_inside_another_strict_configuration() -> None:
    class Run(BaseModel):
        model_config = ConfigDict(extra="forbid")
        lora: LoraConfig

    assert Run.model_validate({"lora": {"r": 4, "target_modules": ["q"]}}).lora == LoraConfig(
        r=4, target_modules=("q",)
    )
    with pytest.raises(ConfigError, match="'lora_alpha'"):
        Run.model_validate({"lora": {"lora_alhpa": 4}})


names = st.text("abc_.", min_size=1, max_size=6)
configs = st.builds(
    LoraConfig,
    r=st.integers(1, 64),
    lora_alpha=st.one_of(st.integers(1, 64), st.floats(0.1, 100)),
    lora_dropout=st.floats(0, 0.99),
    target_modules=st.one_of(st.none(), st.just("all-linear"), st.lists(names, min_size=1, unique=True)),
    exclude_modules=st.one_of(st.none(), st.lists(names, min_size=1, unique=True)),
    rank_pattern=st.dictionaries(names, st.integers(1, 9), max_size=3),
    bias=st.sampled_from(["none", "lora_only", "all"]),
    use_rslora=st.booleans(),
    modules_to_save=st.one_of(st.none(), st.lists(names, min_size=1, unique=True)),
    init_lora_weights=st.sampled_from([True, False, "gaussian"]),
    qkv_slices=st.one_of(st.none(), st.lists(st.sampled_from("qkv"), min_size=1, unique=True)),
)


@given(configs)
def test_json_and_back_is_the_same(config: LoraConfig) -> None:
    assert LoraConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_scaling() -> None:
    assert LoraConfig(r=16, lora_alpha=8).scaling == 0.5
    assert LoraConfig(r=16, lora_alpha=8, use_rslora=True).scaling == 2.0


def test_the_public_face() -> None:
    """What `veneer.lora` names is there, and once."""
    names = veneer.lora.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(veneer.lora, name) for name in names)
