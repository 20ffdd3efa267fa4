"""Strict configurations: frozen, complete in their errors, and helpful with a misspelt key."""

from __future__ import annotations

import pydantic
import pytest

from veneer.errors import ConfigError
from veneer.strict import StrictModel


class Inner(StrictModel):
    lora_alpha: float = 8.0
    r: int = pydantic.Field(default=8, ge=1)


class Outer(StrictModel):
    name: str
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Outer:
        if self.name == "bad":
            raise ValueError("name can't be 'bad'; choose another.")
        return self


def test_a_good_mapping_is_parsed_and_frozen() -> None:
    outer = Outer.parse({"name": "x", "inner": {"r": 4}})
    assert outer.inner.r == 4
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        outer.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"nmae": "x", "name": "x"}, r"unknown key 'nmae'. Did you mean 'name'"),
        ({"name": "x", "inner": {"lora_alhpa": 1}}, r"'inner.lora_alhpa'. Did you mean 'lora_alpha'"),
        ({"name": "x", "several": [{"lora_alhpa": 1}]}, r"'several.0.lora_alhpa'. Did you mean 'lora_alpha'"),
        ({"name": "x", "maybe": {"lora_alhpa": 1}}, r"lora_alhpa'. Did you mean 'lora_alpha'"),
        ({"name": "x", "zzz": 1}, r"'zzz'. Known keys: inner, maybe, name, several"),
        ({}, r"'name' is missing"),
        ({"name": "x", "inner": {"r": 0}}, r"'inner.r' is 0: input should be greater than or equal to 1"),
        ({"name": "bad"}, r"^the flags: name can't be 'bad'; choose another.$"),
    ],
)
def test_a_fault_names_the_key_and_the_mend(mapping: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Outer.parse(mapping, where="the flags")


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError, match=r"x.yaml has 3 faults:(\n  - .*){3}") as caught:
        Outer.parse({"inner": {"r": "many"}, "zzz": 1}, where="x.yaml")
    assert "'name' is missing" in str(caught.value)
    assert "'many'" in str(caught.value)


def test_replace_checks_the_change() -> None:
    outer = Outer(name="x")
    assert outer.replace(name="y").name == "y"
    with pytest.raises(ConfigError, match="nmae"):
        outer.replace(nmae="y")
