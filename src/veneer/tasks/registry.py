"""The tasks by their names. A new task is one line here and one file beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from veneer.errors import AdapterError
from veneer.tasks.base import Task, TaskFromFacts
from veneer.tasks.classification import Classification

__all__ = ["task_from_facts"]

_TASKS: dict[str, TaskFromFacts] = {"classification": Classification.from_facts}


def task_from_facts(name: str, facts: Mapping[str, Any]) -> Task:
    """The task that an adapter folder names.

    Raises:
        AdapterError: this Veneer does not know the task, or its facts are not complete.
    """
    if name not in _TASKS:
        raise AdapterError(
            f"This adapter is for the task {name!r}; this Veneer knows {', '.join(_TASKS)}. Upgrade Veneer."
        )
    try:
        return _TASKS[name](facts)
    except (TypeError, KeyError, ValueError) as error:
        raise AdapterError(
            f"veneer.json does not describe the task {name!r} completely ({error})."
        ) from error
