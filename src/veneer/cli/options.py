"""What a flag is, and how flags become a configuration.

A flag that is not given is None and says nothing, so that it never overrides a file. This file knows no flag by name.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

__all__ = ["Flag", "assignments", "nested", "with_flags"]

Verb = TypeVar("Verb", bound=Callable[..., Any])


@dataclass(frozen=True)
class Flag:
    """One option of the command line.

    name    as it is written, without the dashes
    key     dotted place in the configuration, such as "lora.r"; None: not part of it
    kind    its type, as typer takes it
    help    one line
    panel   group in --help
    short   one letter, or ""
    read    turns what was written (True for a switch) into the configuration's value
    """

    name: str
    key: str | None
    kind: Any
    help: str
    panel: str
    short: str = ""
    metavar: str | None = None
    read: Callable[[Any], Any] = lambda value: value

    @property
    def parameter(self) -> str:
        """Its name in Python."""
        return self.name.replace("-", "_")

    def option(self) -> inspect.Parameter:
        """Itself as a parameter that typer reads."""
        names = [f"--{self.name}"] + ([f"-{self.short}"] if self.short else [])
        info = typer.Option(
            *names,
            help=self.help,
            rich_help_panel=self.panel,
            metavar=" " if self.kind is bool else self.metavar,
            show_default=False,
        )
        return inspect.Parameter(
            self.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if self.kind is bool else None,
            annotation=Annotated[bool if self.kind is bool else self.kind | None, info],
        )


def with_flags(*flags: Flag) -> Callable[[Verb], Verb]:
    """Give a verb these options behind its own parameters; they come in as keyword arguments."""

    def decorate(verb: Verb) -> Verb:
        given = inspect.signature(verb, eval_str=True)
        own = [p for p in given.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {p.name for p in own}
        more = [flag.option() for flag in flags if flag.parameter not in taken]
        verb.__signature__ = given.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        verb.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
        return verb

    return decorate


def nested(flags: Iterable[Flag], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, as a mapping of the configuration's keys.

    >>> flags = (Flag("r", "lora.r", int, "", ""), Flag("epochs", "epochs", int, "", ""))
    >>> nested(flags, {"r": 4, "epochs": None})
    {'lora': {'r': 4}}
    """
    found: dict[str, Any] = {}
    for flag in flags:
        value = settings.get(flag.parameter)
        given = value is not None and value is not False and value != []
        if flag.key is not None and given:
            _put(found, flag.key, flag.read(value))
    return found


def assignments(given: Iterable[str]) -> dict[str, Any]:
    """What --set says, each "key=value" with a dotted key; a value is JSON or YAML, else text.

    >>> assignments(["lora.use_rslora=true", "data.max_rows=100", "base=some/name"])
    {'lora': {'use_rslora': True}, 'data': {'max_rows': 100}, 'base': 'some/name'}
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"--set {text!r}: expected key=value, such as lora.use_rslora=true.")
        _put(found, key.strip(), _value(value))
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def _put(mapping: dict[str, Any], key: str, value: Any) -> None:
    first, dot, rest = key.partition(".")
    if not dot:
        mapping[first] = value
        return
    inner = mapping.setdefault(first, {})
    if not isinstance(inner, dict):
        raise typer.BadParameter(f"{first!r} is given a value of its own, and {key!r} as well.")
    _put(inner, rest, value)
