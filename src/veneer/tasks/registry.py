"""The kinds of tasks by their names. A new one is a line here and a file beside this one; `tests/fifth_task.py` is the
smallest.

KINDS               in the order in which they are asked whether a table is theirs; the last takes the rest
kind_named("...")   the kind that a person or a folder names
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from veneer.adapter import AdapterFolder
from veneer.errors import AdapterError, ConfigError, nearest
from veneer.models.forms import HEAD_CLASSES
from veneer.naming import setting
from veneer.tasks import answers, classification, entities, instructions, regression
from veneer.tasks.base import Task
from veneer.tasks.kind import Kind

__all__ = ["KINDS", "kind_named", "kind_of_peft", "task_from_facts"]

KINDS: tuple[Kind, ...] = (
    answers.KIND,
    entities.KIND,
    instructions.KIND,
    regression.KIND,
    classification.KIND,
)


def kind_named(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ConfigError: there is none.
    """
    names = [kind.name for kind in KINDS]
    if name not in names:
        known = "; ".join(f"{kind.name}: {kind.says}" for kind in KINDS)
        said = " ".join(filter(None, [nearest(name, names), f"Known: {known}."]))
        raise ConfigError(f"{setting('task')}: there is no task {name!r}. {said}")
    return KINDS[names.index(name)]


def kind_of_peft(folder: AdapterFolder) -> Kind:
    """The kind of a folder that PEFT wrote, by its task type; without one, a classifier."""
    given = folder.peft_config.get("task_type")
    for form, head in HEAD_CLASSES.items():
        if given == head.peft_task:
            kind = next((kind for kind in reversed(KINDS) if kind.form == form), None)
            if kind is None:
                raise AdapterError(
                    f"{folder.path} is for PEFT's task type {given}, which Veneer does not read."
                )
            return kind
    return KINDS[-1]


def task_from_facts(name: str, facts: Mapping[str, Any]) -> Task:
    """The task that an adapter folder names.

    Raises:
        AdapterError: this Veneer does not know the task, or its facts are not complete.
    """
    known = {kind.name: kind for kind in KINDS}
    if name not in known:
        raise AdapterError(
            f"This adapter is for the task {name!r}; this Veneer knows {', '.join(known)}. Upgrade Veneer."
        )
    try:
        return known[name].from_facts(facts)
    except (TypeError, KeyError, ValueError) as error:
        raise AdapterError(
            f"veneer.json does not describe the task {name!r} completely ({error})."
        ) from error
