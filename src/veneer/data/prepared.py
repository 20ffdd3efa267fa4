"""What every kind of prepared data can do, whatever an example is; and a ready form of it.

A table of texts and labels has its own (`veneer.data.prepare.Prepared`). This file knows no format and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice

__all__ = ["PreparedData", "PreparedRows", "Rows", "nothing"]


class Rows(Protocol):
    """Examples of one part, in an order."""

    @property
    def name(self) -> str:
        """Of the part: "train", "validation" or "test"."""
        ...

    @property
    def rows(self) -> NDArray[np.int64]:
        """(N,) where each example stands in its file, counted from 0."""
        ...

    def __len__(self) -> int: ...

    def select(self, places: NDArray[np.int64], name: str | None = None) -> Self:
        """Some of the examples, by their places here."""
        ...


class PreparedData(Protocol):
    """Everything that training and evaluation need to know of the data; the rows are of the task's own kind."""

    @property
    def train(self) -> Any:
        """The `Rows` that weights are fitted to."""
        ...

    @property
    def validation(self) -> Any:
        """The `Rows` that decides which weights are kept; may be empty."""
        ...

    @property
    def test(self) -> Any:
        """The `Rows` that nothing is decided by; may be empty."""
        ...

    @property
    def splits(self) -> tuple[Any, Any, Any]:
        """The three parts in this order."""
        ...

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What was inferred, each with its reason."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should look at, each a sentence."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows, and what was left out, by name."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256 of the examples and the split, as hexadecimal digits."""
        ...

    @property
    def source(self) -> str:
        """What a person named."""
        ...

    def summary(self) -> dict[str, Any]:
        """The facts, as JSON values: veneer.json's `data`."""
        ...

    def label_counts(self, split: Any) -> dict[str, int]:
        """What a part holds how often, by name ({}: nothing to count)."""
        ...


R = TypeVar("R", bound=Rows)


def nothing(_: Any) -> dict[str, int]:
    """No counts."""
    return {}


@dataclass(frozen=True)
class PreparedRows(Generic[R]):
    """Prepared data of any kind; see `PreparedData`.

    facts    what a later reading of further files needs, as JSON values (columns, template): part of `summary`
    count    a part -> what it holds how often
    """

    train: R
    validation: R
    test: R
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    counts: Mapping[str, int]
    content_hash: str
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    count: Callable[[Any], dict[str, int]] = nothing

    @property
    def splits(self) -> tuple[R, R, R]:
        """Train, validation and test."""
        return self.train, self.validation, self.test

    def label_counts(self, split: R) -> dict[str, int]:
        """What a part holds how often, by name."""
        return self.count(split)

    def summary(self) -> dict[str, Any]:
        """The facts, ready for a JSON file and for the report."""
        return {
            "source": self.source,
            "content_hash": self.content_hash,
            **self.facts,
            "sizes": {split.name: len(split) for split in self.splits},
            "label_counts": {split.name: self.label_counts(split) for split in self.splits},
            "counts": dict(self.counts),
            "choices": [{"what": c.what, "value": c.value, "reason": c.reason} for c in self.choices],
            "warnings": list(self.warnings),
        }
