"""The base class of every configuration: frozen, no unknown keys, and all faults reported at once.

It knows pydantic, the error tree and how settings are named, and no configuration in particular.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import pydantic
from pydantic_core import ErrorDetails

from veneer.errors import ConfigError, nearest
from veneer.naming import setting

__all__ = ["StrictModel"]


class StrictModel(pydantic.BaseModel):
    """A configuration that can't be changed after it was made and rejects keys that it does not know.

    Use `parse` for anything that comes from a person (flags, a YAML file, a stored folder): it raises
    `ConfigError`, where the constructor raises pydantic's own `ValidationError`.
    """

    place: ClassVar[str | None] = None
    """What stands before its keys in a training configuration ("", "data."); None: it is read from stored files, and
    its keys are never called otherwise."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_enum_values=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], *, where: str | None = None, place: str | None = None) -> Self:
        """The configuration in `mapping`; every fault of it in one `ConfigError`.

        `where` names the place in the message, such as a file name or "the flags"; default: the class's name.
        `place` is what stands before its keys in a training configuration; default: the class's own.
        """
        place = cls.place if place is None else place
        try:
            return cls.model_validate(dict(mapping))
        except pydantic.ValidationError as error:
            faults = [_fault(cls, detail, place) for detail in error.errors(include_url=False)]
        told = where or cls.__name__
        if len(faults) == 1:
            raise ConfigError(f"{told}: {faults[0]}")
        raise ConfigError(f"{told} has {len(faults)} faults:" + "".join(f"\n  - {fault}" for fault in faults))

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed; raises `ConfigError` as `parse` does."""
        return type(self).parse({**dict(self), **changes})


def _fault(model: type[pydantic.BaseModel], detail: ErrorDetails, place: str | None) -> str:
    """One fault as one line: the field, what was given, what was expected."""
    path, kind = detail["loc"], detail["type"]
    name = ".".join(str(part) for part in path)
    if kind == "extra_forbidden":
        known = sorted(_fields_at(model, path[:-1]))
        there = f"Known keys: {', '.join(known)}." if known else "There are none to set here."
        return f"unknown key {name!r}. {nearest(str(path[-1]), known) or there}"
    if kind == "missing":
        return f"{name!r} is missing; it has to be given."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not path or (kind == "value_error" and isinstance(detail["input"], Mapping)):
        # from a check of a whole model, whose message names the fields itself
        return message
    called = repr(name) if place is None else setting(place + name, plain=repr(name))
    return f"{called} is {detail['input']!r}: {message[:1].lower()}{message[1:].rstrip('.')}."


def _fields_at(model: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """The field names of the model, or models of a union, that `path` leads to from `model`."""
    models = [model]
    for part in path:
        inner = [found for one in models for found in _inner_models(one, part)]
        models = inner or models  # a list index or the tag of a union leads to no field of its own
    return {field for one in models for field in one.model_fields}


def _inner_models(model: type[pydantic.BaseModel], field: int | str) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(field, str) and field in model.model_fields:
        yield from _models_in(model.model_fields[field].annotation)


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
