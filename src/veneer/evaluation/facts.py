"""The plain facts of a run, from which the report and the model card are written.

Whoever trained fills them in; every part but the title, the task and the base may be left out, and is then
left out of the pages. This module holds data only: it must not know how it is shown, or how it came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Section
from veneer.evaluation.curves import HistoryPoint
from veneer.evaluation.mistakes import Mistake
from veneer.evaluation.scores import Metrics

__all__ = ["BaseFacts", "Choice", "DataFacts", "LoraFacts", "ReportFacts", "SpeedFacts", "SplitFacts"]


@dataclass(frozen=True)
class BaseFacts:
    """The base model: its name (hub name, or what it is called here), content hash, and number of parameters."""

    name: str
    hash: str = ""
    parameters: int | None = None
    licence: str = ""


@dataclass(frozen=True)
class Choice:
    """Something that was inferred: what, the value, and why; for example ("label column", "intent", "...")."""

    what: str
    value: str
    reason: str = ""


@dataclass(frozen=True)
class SplitFacts:
    """One split: name ("train", "validation", "test"), number of rows, rows of each label (empty: no labels)."""

    name: str
    rows: int
    label_counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataFacts:
    """Where the rows came from, how they were split, what was inferred, and what has to be known about them."""

    source: str
    splits: tuple[SplitFacts, ...] = ()
    choices: tuple[Choice, ...] = ()
    warnings: tuple[str, ...] = ()
    hash: str = ""


@dataclass(frozen=True)
class LoraFacts:
    """What was adapted. `targets`: the patterns; `layers`: adapted layers; `details`: further settings to show."""

    r: int
    alpha: float
    targets: tuple[str, ...]
    trained_parameters: int
    total_parameters: int
    adapter_bytes: int
    layers: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SpeedFacts:
    """How long it took, in seconds, and how fast it was; None: not measured.

    `seconds` is the whole run, report included as far as known; `predicted_seconds` what was announced
    before.
    """

    seconds: float
    training_seconds: float | None = None
    first_step_seconds: float | None = None
    texts_per_second: float | None = None
    tokens_per_second: float | None = None
    predicted_seconds: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the report and the model card show.

    `task` is the task in words ("one of 5 labels for each text"). `validation` and `test` are the metrics of
    any task; `baselines` and the rows in `mistakes` and `mislabelled` belong to the split that decides
    (`decisive`): test where there is one, else validation. `metric_name`, `metric_percent` and
    `metric_higher_is_better` describe `val_metric` in the history. `use` holds command lines to show ("veneer
    predict ..."). `sections` are the task's own parts of the report. `mistakes` and `mislabelled`
    are None where nobody looked, empty where none was found.
    """

    title: str
    task: str
    base: BaseFacts
    data: DataFacts | None = None
    lora: LoraFacts | None = None
    speed: SpeedFacts | None = None
    validation: Metrics | None = None
    test: Metrics | None = None
    baselines: tuple[Baseline, ...] = ()
    history: tuple[HistoryPoint, ...] = ()
    metric_name: str = "Accuracy"
    metric_percent: bool = True
    metric_higher_is_better: bool = True
    mistakes: tuple[Mistake, ...] | None = None
    mislabelled: tuple[Mistake, ...] | None = None
    mistakes_total: int | None = None
    sections: tuple[Section, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    exactness: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    created: str = ""
    use: tuple[str, ...] = ()

    @property
    def decisive(self) -> tuple[str, Metrics] | None:
        """The name and the metrics of the split that decides: test before validation; None where neither is there."""
        if self.test is not None:
            return "test", self.test
        return None if self.validation is None else ("validation", self.validation)
