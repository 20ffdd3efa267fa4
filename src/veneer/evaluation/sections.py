"""The parts of the report: from the facts of a run to sections of blocks.

The order of all, and those that say how good the adapter is; `record_sections` has those that say what was done. One
function a section; each returns None where the facts for it are missing. This module must not know how blocks become
HTML, nor where the report is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Block, Cell, Columns, Folded, Paragraph, Picture, Section, Table
from veneer.evaluation.curves import loss_curve, metric_curve
from veneer.evaluation.facts import ReportFacts
from veneer.evaluation.metrics import ClassificationMetrics, LabelScore, MultilabelMetrics
from veneer.evaluation.mistakes import Mistake
from veneer.evaluation.pictures import MATRIX_LABELS, calibration_diagram, confusion_picture
from veneer.evaluation.record_sections import (
    LABEL_ROWS,
    adapter_section,
    data_section,
    folded_labels,
    record_section,
    speed_section,
    use_section,
)
from veneer.evaluation.scores import Score
from veneer.evaluation.wording import percent, shortened, signed

__all__ = ["sections_of"]

_MISTAKES_OPEN = 8


def sections_of(facts: ReportFacts) -> tuple[Section, ...]:
    """All sections in reading order, the task's own ones in their places."""
    results = [
        _comparison(facts),
        _training(facts),
        _answers(facts),
        _calibration(facts),
        *[section for section in facts.sections if section.place == "results"],
        _mistakes(facts),
        _mislabelled(facts),
    ]
    rest = [
        data_section(facts),
        adapter_section(facts),
        speed_section(facts),
        *[section for section in facts.sections if section.place != "results"],
        use_section(facts),
        record_section(facts),
    ]
    return tuple(section for section in [*results, *rest] if section is not None)


def _comparison(facts: ReportFacts) -> Section | None:
    if facts.decisive is None:
        return None
    split, metrics = facts.decisive
    scores = metrics.summary()
    second = next((s for s in scores.scores[1:] if any(b.scores.get(s.key) for b in facts.baselines)), None)
    ours = (Cell("this adapter", strong=True), _compared_cell(scores.primary, strong=True))
    rows: list[tuple[str | Cell, ...]] = [(*ours, second.text if second else "", "", "")]
    sign = -1 if scores.primary.higher_is_better else 1
    for baseline in sorted(facts.baselines, key=lambda b: sign * b.accuracy):
        rows.append(_baseline_row(baseline, scores.primary, second))
    paired = any(baseline.difference is not None for baseline in facts.baselines)
    ahead = "adapter ahead by" if paired else ""
    columns = ("", scores.primary.name, second.name if second else "", ahead, "seconds")
    blocks: list[Block] = []
    if facts.baselines:
        blocks.append(Table(columns, tuple(rows), numeric=(2, 3, 4)))
        notes = [f"{b.name}: {b.note}." for b in facts.baselines if b.note]
        on = f"All on the same {scores.n:,} {split} {scores.unit}; in small type the intervals."
        blocks.append(Paragraph(" ".join([on, *notes]), "note"))
    blocks.append(_all_scores(facts))
    return Section("How good it is", tuple(blocks))


def _compared_cell(score: Score, *, strong: bool = False) -> Cell:
    band = None
    if score.interval is not None and score.percent:
        low, high = (min(max(bound, 0.0), 1.0) for bound in (score.interval.low, score.interval.high))
        band = (low, high)
    bar = min(max(score.value, 0.0), 1.0) if score.percent else None
    return Cell(score.text, bar=bar, band=band, strong=strong, note=score.interval_text)


def _baseline_row(baseline: Baseline, primary: Score, second: Score | None) -> tuple[str | Cell, ...]:
    score = baseline.scores.get(primary.key)
    other = baseline.scores.get(second.key) if second else None
    ahead: str | Cell = ""
    if baseline.difference is not None:
        low, high = 100 * baseline.difference.interval.low, 100 * baseline.difference.interval.high
        value = signed(100 * baseline.difference.value)
        ahead = Cell(value, note=f"{signed(low)} to {signed(high)}")
    ours = _compared_cell(score) if score is not None else "–"
    return (baseline.name, ours, other.text if other else "", ahead, f"{baseline.seconds:.1f}")


def _all_scores(facts: ReportFacts) -> Table:
    """Every score, a column for each split."""
    splits = [
        (n, m.summary()) for n, m in (("test", facts.test), ("validation", facts.validation)) if m is not None
    ]
    rows = []
    for score in splits[0][1].scores:
        cells: list[str | Cell] = [score.name]
        for _, scores in splits:
            found = scores.get(score.key)
            interval = f"({found.interval_text})" if found and found.interval_text else ""
            cells.append(Cell(found.text if found else "–", note=interval))
        rows.append(tuple(cells))
    names = tuple(f"{name} ({scores.n:,} {scores.unit})" for name, scores in splits)
    return Table(("", *names), tuple(rows), numeric=tuple(range(1, len(splits) + 1)))


def _training(facts: ReportFacts) -> Section | None:
    if not facts.history:
        return None
    pictures: list[Block] = []
    loss = loss_curve(facts.history)
    if loss is not None:
        alt = "Loss of training and validation over epochs and examples seen"
        pictures.append(Picture(loss, "loss.png", alt, "Loss of training and validation."))
    metric = metric_curve(
        facts.history,
        name=facts.metric_name,
        percent=facts.metric_percent,
        higher_is_better=facts.metric_higher_is_better,
    )
    if metric is not None:
        caption = f"{facts.metric_name} on the validation rows; the circle is the adapter that was kept."
        pictures.append(Picture(metric, "metric.png", f"{facts.metric_name} on the validation rows", caption))
    if not pictures:
        return None
    last = max(facts.history, key=lambda point: point.step)
    said = f"{last.step:,} steps, {last.epoch:.3g} epochs, {last.examples:,} examples seen."
    return Section("How it learned", (Columns(tuple(pictures)), Paragraph(said, "note")))


def _answers(facts: ReportFacts) -> Section | None:
    """Confusion matrix and the table of labels, for classifiers."""
    if facts.decisive is None:
        return None
    split, metrics = facts.decisive
    if isinstance(metrics, MultilabelMetrics):
        return Section("Label by label", (_labels(metrics.per_label),))
    if not isinstance(metrics, ClassificationMetrics):
        return None
    size = len(metrics.labels)
    caption = (
        f"The {split} rows: given label down, answer across; stronger colour: larger share of the label."
    )
    if size > MATRIX_LABELS:
        caption = f"The commonest confusions among {size} labels on the {split} rows."
    png = confusion_picture(metrics.confusion, metrics.labels)
    picture = Picture(
        png, "confusion.png", "Given labels against answers, counts", caption, wide=12 < size <= MATRIX_LABELS
    )
    table = _labels(metrics.per_label)
    blocks: tuple[Block, ...] = (Columns((picture, table)),) if size <= LABEL_ROWS else (picture, table)
    return Section("What it confuses", blocks)


def _labels(per_label: Sequence[LabelScore]) -> Block:
    """The scores of each label."""
    rows = tuple(
        (
            score.label,
            f"{100 * score.precision:.1f}",
            f"{100 * score.recall:.1f}",
            f"{100 * score.f1:.1f}",
            str(score.support),
        )
        for score in per_label
    )
    table = Table(("label", "precision", "recall", "F1", "rows"), rows, numeric=(1, 2, 3, 4))
    return folded_labels(table, len(rows), "Precision and recall of each of the")


def _calibration(facts: ReportFacts) -> Section | None:
    if facts.decisive is None or not isinstance(facts.decisive[1], ClassificationMetrics | MultilabelMetrics):
        return None
    metrics = facts.decisive[1]
    several = isinstance(metrics, MultilabelMetrics)
    error = 100 * metrics.calibration.ece
    judged = "can be taken at its word" if error < 5 else "should be read with care"
    said = (
        f"On average the probability is {error:.1f} points away from how often the answer is right: "
        f"it {judged}. Points above the dashed line mean that the model is more often right than it says, "
        "below it less often."
    )
    png = calibration_diagram(metrics.calibration, several_labels=several)
    picture = Picture(png, "calibration.png", "Share of right answers for each probability", "")
    return Section("Whether it knows what it knows", (Columns((picture, Paragraph(said))),))


def _mistakes(facts: ReportFacts) -> Section | None:
    if facts.mistakes is None:
        return None
    if not facts.mistakes:
        return Section("The texts it gets most wrong", (Paragraph("None: every answer is right."),))
    split = facts.decisive[0] if facts.decisive else "test"
    total = facts.mistakes_total
    shown = len(facts.mistakes)
    said = f"The surest wrong answers on the {split} rows"
    said += f", {shown} of {total:,}." if total is not None and total > shown else "."
    return Section(
        "The texts it gets most wrong", (Paragraph(said, "note"), *_mistake_tables(facts.mistakes, 320))
    )


def _mislabelled(facts: ReportFacts) -> Section | None:
    if facts.mislabelled is None:
        return None
    if not facts.mislabelled:
        return Section("Likely mislabelled rows", (Paragraph("None found among these rows."),))
    said = (
        "Here the model doubts the given label. These are rows to look at, not corrections: where the label "
        "is wrong, mend the file and train again; where it is right, the text is hard."
    )
    return Section(
        "Likely mislabelled rows", (Paragraph(said, "note"), *_mistake_tables(facts.mislabelled, 120))
    )


def _mistake_tables(mistakes: Sequence[Mistake], longest: int) -> list[Block]:
    """A table of the first ones, the others folded; texts cut after `longest` characters."""

    def table(part: Sequence[Mistake]) -> Table:
        rows = tuple(
            (
                str(m.row),
                shortened(m.text, longest),
                shortened(m.given, 40),
                shortened(m.predicted, 40),
                percent(m.probability),
            )
            for m in part
        )
        return Table(("row", "text", "given", "answer", "how sure"), rows, numeric=(0, 4), texts=(1,))

    blocks: list[Block] = [table(mistakes[:_MISTAKES_OPEN])]
    rest = mistakes[_MISTAKES_OPEN:]
    if rest:
        blocks.append(Folded(f"{len(rest)} more", (table(rest),)))
    return blocks
