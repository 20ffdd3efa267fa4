"""Numbers with a name: what a report, a baseline and a model card show, whatever the task.

Each task has metrics of its own; each of them can be read as `Scores`, of which the first is the one that
decides. This module must not know what a label is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from veneer.evaluation.bootstrap import Interval

__all__ = ["Metrics", "Score", "Scores"]


@dataclass(frozen=True)
class Score:
    """One number: `key` as in JSON, `name` as people read it.

    `percent`: the value is a fraction, shown as a percentage. `higher_is_better` is False for losses and
    errors.
    """

    key: str
    name: str
    value: float
    interval: Interval | None = None
    percent: bool = True
    higher_is_better: bool = True

    @property
    def text(self) -> str:
        """The value as it is printed: "97.8 %" or "0.113"."""
        return self.format(self.value)

    @property
    def interval_text(self) -> str:
        """The interval as it is printed, without the unit: "95.9 – 99.2", or "" where there is none."""
        if self.interval is None or self.interval.method == "none":
            return ""
        low, high = (
            self.format(bound).removesuffix(" %") for bound in (self.interval.low, self.interval.high)
        )
        return f"{low} – {high}"

    def format(self, value: float) -> str:
        """A value of this score's kind as text; a fraction below 1 is never rounded up to 100.0 %."""
        if not self.percent:
            return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.1f}"
        shown = f"{100 * value:.1f} %"
        if shown == "100.0 %" and value < 1.0:
            return "> 99.9 %"
        return shown


@dataclass(frozen=True)
class Scores:
    """The scores of one split: `n` rows of a `unit` ("texts"), at least one score; the first decides."""

    n: int
    scores: tuple[Score, ...]
    unit: str = "texts"

    @property
    def primary(self) -> Score:
        """The score that decides."""
        return self.scores[0]

    def get(self, key: str) -> Score | None:
        """The score with this key, or None."""
        return next((score for score in self.scores if score.key == key), None)

    def summary(self) -> Scores:
        """Itself: `Scores` can stand wherever metrics are asked for."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain data: each score under its key, their intervals under "intervals"."""
        intervals = {s.key: s.interval.to_json() for s in self.scores if s.interval is not None}
        return {"n": self.n} | {s.key: s.value for s in self.scores} | {"intervals": intervals}


class Metrics(Protocol):
    """What the metrics of every task can do."""

    def summary(self) -> Scores:
        """The numbers that a person reads first."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        ...
