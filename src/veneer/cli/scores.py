"""Metrics as tables of text, for the verbs that measure. It knows `Scores`, and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from veneer.cli.console import table

if TYPE_CHECKING:
    from rich.table import Table

    from veneer.evaluation.scores import Score, Scores

__all__ = ["confusion_table", "further_table", "label_table", "scores_table"]

_PEOPLE = ("Brier",)
_SHOWN = 2  # figures of a row
_MOST_LABELS = 12  # of a confusion matrix that is shown whole


def scores_table(rows: Sequence[tuple[str, Scores]]) -> Table:
    """The first figures with their intervals, a row for each of what was measured."""
    from rich.text import Text

    first = rows[0][1]
    keys = [score.key for score in first.scores[:_SHOWN]]
    names = [name for score in first.scores[:_SHOWN] for name in (_name(score), "95 % interval")]
    found = table("", first.unit, *names, numbers=range(1, 2 + len(names)))
    for place, (what, scores) in enumerate(rows):
        cells = []
        for key in keys:
            score = scores.get(key)
            cells += [score.text, score.interval_text] if score else ["", ""]
        style = "bold" if place == 0 else ""
        found.add_row(Text(what, style), f"{scores.n:,}", *(Text(cell, style) for cell in cells))
    return found


def further_table(scores: Scores) -> Table | None:
    """The figures that `scores_table` leaves out, a row each; None where there are no more."""
    further = scores.scores[_SHOWN:]
    if not further:
        return None
    found = table(
        "", "", "95 % interval" if any(score.interval_text for score in further) else "", numbers=(1, 2)
    )
    for score in further:
        found.add_row(_name(score), score.text, score.interval_text)
    return found


def _name(score: Score) -> str:
    """Within a line: "Macro-F1" is "macro-F1", "RMSE" and people's names stay."""
    name = score.name
    return name if name.startswith(_PEOPLE) else name[:1].lower() + name[1:] if name[1:2].islower() else name


def label_table(per_label: Sequence[Any], what: str = "label", counted: str = "texts") -> Table:
    """Precision, recall and F1 of each label, or of each type of entity."""
    found = table(what, counted, "precision", "recall", "F1", numbers=(1, 2, 3, 4))
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
