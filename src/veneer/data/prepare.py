"""From what a person named to checked, labelled, split texts: `prepare(config) -> Prepared`.

It puts the other modules of `data` together in their order, and counts and words what they did. It knows no
model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice, Notes, counted
from veneer.data.config import DataConfig
from veneer.data.download import Progress
from veneer.data.hashing import group_equal
from veneer.data.infer import column_facts, infer_task
from veneer.data.labels import LabelSet, count_labels
from veneer.data.numbers import strata_of_numbers
from veneer.data.repeats import count_fixed_overlap, count_repeats, remove_overlap
from veneer.data.rows import Columns, LabelForm, LabelledRows, Labels, Split, choose_columns, label_rows
from veneer.data.sources import Loaded, Source, load_own
from veneer.data.split import Parts, sample_rows, split_rows, strata_of_multi_hot
from veneer.data.tables import Table
from veneer.data.used_labels import check_trained, keep_used_labels, per_label
from veneer.errors import DataError
from veneer.naming import setting

__all__ = ["Prepared", "prepare", "task_of_labels"]


@dataclass(frozen=True)
class Prepared:
    """Everything that training and evaluation need to know of the data.

    label_set      the labels, in the order of their ids; `labels` are their names; none where the target is a number
    columns, form  what was read, to read further files in the same way
    choices        what was inferred, each with its reason
    warnings       what a person should look at, each a sentence
    counts         rows, empty_texts, missing_labels, repeated_texts, contradictory_texts, overlap_train_test,
                   ...
    content_hash   SHA-256 of texts, labels and split, as hexadecimal digits
    """

    train: Split
    validation: Split
    test: Split
    label_set: LabelSet
    columns: Columns
    form: LabelForm
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    counts: Mapping[str, int]
    content_hash: str
    source: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels' names; the id of a label is its place."""
        return self.label_set.names

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels."""
        return self.form.multi

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Train, validation and test."""
        return self.train, self.validation, self.test

    def label_counts(self, split: Split) -> dict[str, int]:
        """How many texts of a split have each label; {} where the target is a number."""
        if self.form.number:
            return {}
        numbers = per_label(split.labels, len(self.labels))
        return dict(zip(self.labels, numbers.tolist(), strict=True))

    def summary(self) -> dict[str, object]:
        """The facts, ready for a JSON file and for the report."""
        return {
            "source": self.source,
            "content_hash": self.content_hash,
            "text_column": self.columns.text,
            "text_pair_column": self.columns.pair,
            "label_column": self.columns.label,
            "multi_label": self.multi_label,
            "label_separator": self.form.separator,
            "labels": self.label_set.to_dict(),
            "sizes": {split.name: len(split) for split in self.splits},
            "label_counts": {split.name: self.label_counts(split) for split in self.splits},
            "counts": dict(self.counts),
            "choices": [{"what": c.what, "value": c.value, "reason": c.reason} for c in self.choices],
            "warnings": list(self.warnings),
        }


def prepare(
    config: DataConfig,
    *,
    progress: Progress | None = None,
    target: Literal["labels", "numbers"] | None = None,
    source: Source | None = None,
) -> Prepared:
    """Read, choose columns, encode labels, clean, find repeats, split.

    Args:
        config: what to read.
        progress: told of downloads of a named source.
        target: what the label column holds; None: inferred.
        source: the source of `config`, where some of it was read before.

    Raises:
        DataError, SourceError, ConfigError, MissingExtraError: each names what to change.
    """
    loaded = (source or Source(config, progress)).loaded
    own = {
        "validation": load_own(config.validation, config) if config.validation else loaded.validation,
        "test": load_own(config.test, config) if config.test else loaded.test,
    }
    notes = Notes([*loaded.table.choices, *loaded.choices], [*loaded.table.warnings, *loaded.warnings])
    columns, label_set, form = _read_labels(config, loaded, notes, target)
    main = _labelled(config, loaded.table, columns, label_set, form, notes)
    others = {
        name: _labelled(config, table, _columns_of(table, columns), label_set, form, notes)
        for name, table in own.items()
        if table is not None
    }
    if loaded.fixed is not None:
        fixed_rows = np.concatenate([loaded.fixed.train, loaded.fixed.validation, loaded.fixed.test])
        main.keep &= np.isin(np.arange(len(main.table)), fixed_rows)
    _sample(config, main, notes)
    if form.number:
        _check_numbers(main)
    else:
        label_set = keep_used_labels(main, others, label_set, notes)
    parts = _divide(config, loaded.fixed, main, others, notes)
    train, validation, test = (
        others[name].split(name, others[name].kept) if name in others else main.split(name, rows)
        for name, rows in (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
    )
    if not form.number:
        check_trained(train, (validation, test), label_set, notes)
    for name, what in (("empty_texts", "an empty text"), ("missing_labels", "no label")):
        if n := notes.counts[name]:
            notes.warnings.append(f"{counted(n, 'row')} with {what} left out.")
    return Prepared(
        train, validation, test, label_set, columns, form, tuple(notes.choices), tuple(notes.warnings),
        notes.counts, _content_hash((train, validation, test), label_set), config.source,
    )  # fmt: skip


def _read_labels(
    config: DataConfig, loaded: Loaded, notes: Notes, target: str | None
) -> tuple[Columns, LabelSet, LabelForm]:
    table = loaded.table
    text, label = config.text_column or loaded.text_column, config.label_column or loaded.label_column
    columns, choices = choose_columns(table, text, label, config.text_pair_column)
    notes.choices += choices
    task, separator = task_of_labels(table, columns.label, config)
    regression = task.value == "regression"
    if target is not None and regression != (target == "numbers"):
        task = Choice("task", "regression" if target == "numbers" else "classification", "asked for")
        separator, regression = None, target == "numbers"
    notes.choices.append(task)
    if regression:
        return columns, LabelSet((), "number"), LabelForm(number=True)
    form = LabelForm(task.value == "multi-label", separator)
    kind = table.kinds.get(columns.label, "text")
    found = count_labels(table.cells(columns.label), kind, form.multi, separator)
    notes.warnings += found.warnings()
    return columns, found.label_set(f"{table.path}, column {columns.label!r}"), form


def task_of_labels(table: Table, column: str, config: DataConfig) -> tuple[Choice, str | None]:
    """What a label column asks for, with the reason, and the separator of several labels in a cell."""
    sample = table.take(column, np.arange(min(len(table), 10_000), dtype=np.int64))
    return infer_task(column_facts(table, column), sample, config.multi_label, config.label_separator)


def _check_numbers(main: LabelledRows) -> None:
    values = main.labels[main.kept]
    if not len(values) or values.min() == values.max():
        only = f"only the number {values[0]:g}" if len(values) else "no number at all"
        raise DataError(
            f"{main.table.path}, column {main.columns.label!r} holds {only}; there is nothing to learn from it."
        )


def _columns_of(table: Table, train: Columns) -> Columns:
    """The columns of a further file: those of the training file, or inferred where the names differ."""
    names = (train.text, train.label, train.pair)
    text, label, pair = (name if name in table.columns else None for name in names)
    if train.pair is not None and pair is None:
        raise DataError(
            f"{table.path} has no column {train.pair!r}; its columns: {', '.join(table.columns)}."
        )
    return choose_columns(table, text, label, pair)[0]


def _labelled(
    config: DataConfig, table: Table, columns: Columns, labels: LabelSet, form: LabelForm, notes: Notes
) -> LabelledRows:
    return label_rows(
        table,
        columns,
        labels,
        form,
        on_missing_label=config.on_missing_label,
        on_empty_text=config.on_empty_text,
        notes=notes,
    )


def _sample(config: DataConfig, main: LabelledRows, notes: Notes) -> None:
    """Keep at most `max_rows` rows of the main table; works in place on `keep`."""
    rows = main.kept
    if config.max_rows is None or len(rows) <= config.max_rows:
        return
    drawn = rows[sample_rows(group_equal(main.prints[rows]), config.max_rows, config.seed)]
    of = f"{len(drawn):,} of {len(rows):,}"
    notes.choices.append(Choice("rows", of, f"{setting('data.max_rows')}; drawn by the seed {config.seed}"))
    main.keep[:] = False
    main.keep[drawn] = True


def _divide(
    config: DataConfig,
    fixed: Parts | None,
    main: LabelledRows,
    others: Mapping[str, LabelledRows],
    notes: Notes,
) -> Parts:
    """The parts of the main table; removes what stands in the user's own files from it."""
    if others:
        remove_overlap(config, main, others, notes)
    rows = main.kept
    groups = group_equal(main.prints[rows])
    strata = _strata(main.labels[rows])
    together = fixed is None and config.duplicates == "keep-together"
    count_repeats(main, rows, groups, together, notes)
    if fixed is not None:
        parts = Parts(*(part[main.keep[part]] for part in (fixed.train, fixed.validation, fixed.test)))
        count_fixed_overlap(main, parts, notes)
        return parts
    if config.duplicates == "ignore":
        apart = main.prints[rows].copy()
        apart[:, 1] = np.arange(len(rows))
        apart[:, 0] += np.arange(len(rows), dtype=np.uint64)
        groups = group_equal(apart)
    fractions = {
        "validation_fraction": 0.0 if "validation" in others else config.validation_fraction,
        "test_fraction": 0.0 if "test" in others else config.test_fraction,
    }
    parts = split_rows(groups, strata, seed=config.seed, **fractions)
    _check_sizes(main, len(groups.sizes), parts, fractions)
    notes.choices.append(_split_choice(config, parts, others, fractions))
    return Parts(rows[parts.train], rows[parts.validation], rows[parts.test])


def _split_choice(
    config: DataConfig, parts: Parts, others: Mapping[str, LabelledRows], fractions: Mapping[str, float]
) -> Choice:
    sizes = [f"{len(parts.train):,} train"]
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        own = name in others
        sizes.append(
            f"{len(others[name].kept) if own else len(part):,} {name}{' (a file of its own)' if own else ''}"
        )
    if not any(fractions.values()):
        return Choice("split", ", ".join(sizes), "as given")
    return Choice("split", ", ".join(sizes), f"stratified by label, seed {config.seed}")


def _check_sizes(main: LabelledRows, n_texts: int, parts: Parts, fractions: Mapping[str, float]) -> None:
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        if fractions[f"{name}_fraction"] > 0 and not len(part):
            have = f"{counted(int(main.keep.sum()), 'usable row')} ({counted(n_texts, 'different text')})"
            raise DataError(
                f"{main.table.path}: {have} are too few to split off a {name} part. "
                f"Use more rows, give a {name} file ({setting(f'data.{name}', 'FILE')}), or give "
                f"{setting(f'data.{name}_fraction', 0)}."
            )


def _strata(labels: Labels) -> NDArray[np.int64]:
    if labels.dtype == np.float64:
        return strata_of_numbers(labels.astype(np.float64, copy=False))
    if labels.ndim == 1:
        return labels.astype(np.int64, copy=False)
    return strata_of_multi_hot(labels.astype(np.uint8, copy=False))


def _content_hash(splits: tuple[Split, ...], labels: LabelSet) -> str:
    digest = hashlib.sha256(repr((labels.names, labels.kind)).encode())
    for split in splits:
        digest.update(f"\n{split.name} {len(split)}\n".encode())
        for column in filter(None, (split.text_column, split.pair_column)):
            for start in range(0, len(split), 4096):
                for text in split.table.take(column, split.rows[start : start + 4096]):
                    raw = (text or "").encode("utf-8", "surrogatepass")
                    digest.update(len(raw).to_bytes(8, "little") + raw)
        number = split.labels.dtype == np.float64
        written = "<f8" if number else "<i8" if split.labels.ndim == 1 else "u1"
        digest.update(np.ascontiguousarray(split.labels).astype(written).tobytes())
    return digest.hexdigest()
