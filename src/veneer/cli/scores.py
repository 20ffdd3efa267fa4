"""Metrics as tables of text, for the verbs that measure. It knows `Scores`, and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from veneer.cli.console import table

if TYPE_CHECKING:
    from rich.table import Table

    from veneer.evaluation.scores import Scores

__all__ = ["confusion_table", "label_table", "scores_table"]

_SHOWN = ("accuracy", "macro_f1")
_MOST_LABELS = 12  # of a confusion matrix that is shown whole


def scores_table(rows: Sequence[tuple[str, Scores]]) -> Table:
    """Accuracy and macro-F1 with their intervals, a row for each of what was measured."""
    from rich.text import Text

    names = [name for key in _SHOWN for name in (_name(rows, key), "95 % interval")]
    found = table("", "texts", *names, numbers=(1, 2, 3, 4, 5))
    for place, (what, scores) in enumerate(rows):
        cells = []
        for key in _SHOWN:
            score = scores.get(key)
            cells += [score.text, score.interval_text] if score else ["", ""]
        style = "bold" if place == 0 else ""
        found.add_row(Text(what, style), f"{scores.n:,}", *(Text(cell, style) for cell in cells))
    return found


def _name(rows: Sequence[tuple[str, Scores]], key: str) -> str:
    score = next((found for _, scores in rows if (found := scores.get(key))), None)
    return score.name.lower().replace("f1", "F1") if score else key


def label_table(per_label: Sequence[Any]) -> Table:
    """Precision, recall and F1 of each label."""
    found = table("label", "texts", "precision", "recall", "F1", numbers=(1, 2, 3, 4))
    for one in per_label:
        shares = (f"{100 * share:.1f} %" for share in (one.precision, one.recall, one.f1))
        found.add_row(_text(one.label), f"{one.support:,}", *shares)
    return found


def confusion_table(labels: Sequence[str], confusion: Any, confusions: Sequence[dict[str, Any]]) -> Table:
    """The matrix, a row for each given label; of many labels the largest mistakes only."""
    if len(labels) > _MOST_LABELS:
        found = table("given", "answered", "texts", numbers=(2,))
        for one in confusions[:10]:
            found.add_row(_text(one["given"]), _text(one["predicted"]), f"{one['count']:,}")
        return found
    heads = [_letter(place) for place in range(len(labels))]
    found = table("given \\ answered", "", *heads, numbers=range(2, len(labels) + 2))
    for place, label in enumerate(labels):
        found.add_row(_text(label), heads[place], *(f"{int(n):,}" if n else "·" for n in confusion[place]))
    return found


def _letter(place: int) -> str:
    return chr(ord("a") + place)


def _text(label: str) -> Any:
    from rich.text import Text

    return Text(label if len(label) <= 28 else label[:27] + "…")
