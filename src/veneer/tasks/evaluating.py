"""How good an adapter is on labelled rows: a file, or the test part of a named source.

It joins an `Adapted` with the data room's strict reading of labels; it knows no terminal and no training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice
from veneer.data.config import DataConfig
from veneer.data.labels import LabelSet
from veneer.data.prepare import prepare
from veneer.data.reading import labelled
from veneer.data.rows import LabelForm, Split
from veneer.errors import AdapterError, DataError
from veneer.evaluation.scores import Metrics
from veneer.tasks.adapted import Adapted, Progress
from veneer.tasks.classification import Classification
from veneer.tasks.encoding import token_store

__all__ = ["Evaluated", "evaluate"]


@dataclass(frozen=True)
class Evaluated:
    """The metrics, the rows they were measured on, and what was said while those were read."""

    metrics: Metrics
    rows: int
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    seconds: float


def evaluate(
    adapted: Adapted,
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    variant: str | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Answer labelled rows and compare.

    Args:
        adapted: a classifier.
        source: a file; or a named source or data set of the hub, of which the test part is taken, split as for
            training.
        text_column, label_column: what to read; None: the columns of training if the file has them, else inferred.
        variant: of a named source.
        progress: told the texts done, and all.

    Raises:
        DataError: the rows can't be read, or hold labels that the adapter does not know.
        AdapterError: not a classifier.
    """
    task = adapted.task
    if not isinstance(task, Classification):
        raise AdapterError(
            f"This adapter is for the task {task.name!r}; only classifiers are evaluated on labels."
        )
    labels, form = _labels(adapted, task)
    path = Path(source)
    if path.is_file():
        text, label = _columns(adapted, path, text_column, label_column)
        split, notes = labelled(path, labels, form, text_column=text, label_column=label)
        targets, choices = np.asarray(split.labels), notes.choices
        warnings = [*notes.warnings, *_seen_before(adapted, path)]
    else:
        named = {"text_column": text_column, "label_column": label_column, "variant": variant}
        config = _as_trained(adapted, str(source)) | {k: v for k, v in named.items() if v is not None}
        prepared = prepare(DataConfig.parse(config, where="the data"))
        split, choices, warnings = prepared.test, list(prepared.choices), list(prepared.warnings)
        if not len(split):
            raise DataError(f"{source} has no test part. Give a file of labelled rows.")
        targets = _renumbered(split, prepared.label_set, labels)
    began = time.perf_counter()
    store = token_store((texts for texts, _ in split.batches()), adapted.base.tokenizer, adapted.max_length)
    metrics = task.metrics(adapted.outputs_of(store, progress=progress), targets)
    return Evaluated(metrics, len(split), tuple(choices), tuple(warnings), time.perf_counter() - began)


def _labels(adapted: Adapted, task: Classification) -> tuple[LabelSet, LabelForm]:
    """The adapter's labels, read as training read them."""
    data: dict[str, Any] = adapted.facts.data if adapted.facts is not None else {}
    kind = data.get("labels", {}).get("kind", "string")
    return LabelSet(task.labels, kind), LabelForm(task.multi_label, data.get("label_separator"))


def _columns(
    adapted: Adapted, path: Path, text: str | None, label: str | None
) -> tuple[str | None, str | None]:
    """The columns that were trained on, where the file has both and nothing else was asked for."""
    from veneer.data.tables import open_stream

    data: dict[str, Any] = adapted.facts.data if adapted.facts is not None else {}
    known = open_stream(path).columns
    before = (data.get("text_column"), data.get("label_column"))
    if text is None and label is None and all(name in known for name in before):
        return before
    return text, label


def _as_trained(adapted: Adapted, source: str) -> dict[str, Any]:
    """The data configuration of a named source: training's own where it is the same one, so that its test part stays
    apart from what was trained on.
    """
    trained: dict[str, Any] = adapted.facts.training.get("data", {}) if adapted.facts is not None else {}
    same = str(trained.get("source", "")).partition(":")[0] == source.partition(":")[0]
    return {**(trained if same else {}), "source": source}


def _seen_before(adapted: Adapted, path: Path) -> list[str]:
    """A warning where the file is the very one that was trained on."""
    trained = Path(str(adapted.facts.data.get("source", ""))) if adapted.facts is not None else Path()
    if trained.is_file() and trained.samefile(path):
        return [
            f"{path} is the file that this adapter was trained on, so these numbers flatter. Use other rows."
        ]
    return []


def _renumbered(split: Split, theirs: LabelSet, ours: LabelSet) -> NDArray[Any]:
    """The labels of a split under the adapter's numbers."""
    numbers = np.array([ours.id(name) for name in theirs.names], dtype=np.int64)
    targets = np.asarray(split.labels)
    if targets.ndim == 1:
        return numbers[targets]
    found = np.zeros((len(targets), len(ours)), np.uint8)
    found[:, numbers] = targets
    return found
