"""How good an adapter is on labelled rows: a file, or the test part of a named source.

It joins an `Adapted` with its kind's strict reading of rows; it knows no terminal and no training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veneer.data.choices import Choice
from veneer.data.config import DataConfig
from veneer.data.sources import Source
from veneer.data.tables import TableOptions
from veneer.evaluation.scores import Metrics
from veneer.tasks.adapted import Adapted, Progress

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
    text_pair_column: str | None = None,
    label_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    variant: str | None = None,
    options: TableOptions | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Answer labelled rows and compare.

    Args:
        adapted: what answers.
        source: a file; or a named source or data set of the hub, of which the test part is taken, split as for
            training.
        text_column, text_pair_column, label_column, columns: what to read; None: the columns of training if the file
            has them, else inferred.
        variant: of a named source.
        options: how a file is written; None: inferred.
        progress: told the texts done, and all.

    Raises:
        DataError: the rows can't be read, or hold labels that the adapter does not know.
    """
    named = {
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
        "columns": dict(columns) if columns else None,
        "variant": variant,
    }
    named |= vars(options) if options is not None else {}
    path = Path(source)
    below: dict[str, Any] = {"source": str(source)}
    if not path.is_file():
        below = _as_trained(adapted, str(source))
    config = DataConfig.parse(below | {k: v for k, v in named.items() if v is not None}, where="the data")
    data: dict[str, Any] = adapted.facts.data if adapted.facts is not None else {}
    adapted.kind.check_roles(config.columns)
    found = adapted.kind.labelled(adapted.task, data, Source(config))
    began = time.perf_counter()
    encoded = adapted.task.encode(found.rows, adapted.base.tokenizer, adapted.max_length)
    metrics = adapted.task.metrics(adapted.outputs_of(encoded, progress=progress), encoded)
    warnings = (*found.warnings, *_seen_before(adapted, path), *_labels_without_rows(metrics.to_json()))
    return Evaluated(metrics, len(found.rows), found.choices, warnings, time.perf_counter() - began)


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


def _labels_without_rows(metrics: Mapping[str, Any]) -> list[str]:
    """A warning where some labels of the adapter can't be measured: macro-F1 is then another figure than it seems."""
    names = [row["label"] for row in metrics.get("per_label") or () if row.get("support") == 0]
    if not names or "macro_f1" not in metrics:
        return []
    listed = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return [
        f"no row has the label {listed}, so nothing is measured about it; macro-F1 counts such a label as 0 where it "
        "was answered, and leaves it out else."
    ]
