"""From what a person named to three parts of checked examples, for any task whose rows are not a table of labels.

    prepared = prepare_examples(source, read, notes=Notes(), facts={...})

The task reads one file into its own rows; this file finds the user's own validation and test files, takes out what
stands on both sides, draws `max_rows`, and splits by the seed, equal examples together. It knows no format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from veneer.data.choices import Choice, Notes, counted
from veneer.data.config import DataConfig
from veneer.data.hashing import UInts, group_equal
from veneer.data.prepared import PreparedRows, Rows, nothing
from veneer.data.sources import Source
from veneer.data.split import Parts, sample_rows, split_rows
from veneer.errors import DataError
from veneer.naming import setting

__all__ = ["ExampleRows", "prepare_examples"]


class ExampleRows(Rows, Protocol):
    """Rows that can be kept apart: they have a fingerprint each, and can be written out for the content hash."""

    @property
    def prints(self) -> UInts:
        """(N, 2) uint64, equal for examples that must not stand on two sides (`hashing.fingerprints`)."""
        ...

    def content(self, place: int) -> str:
        """All of an example, its answer included, as one text."""
        ...


R = TypeVar("R", bound=ExampleRows)


def prepare_examples(
    source: Source,
    read: Callable[[Source, Notes], R],
    *,
    notes: Notes | None = None,
    facts: Mapping[str, Any] | Callable[[R], Mapping[str, Any]] = {},  # noqa: B006 (never changed)
    count: Callable[[Any], dict[str, int]] = nothing,
    noun: str = "example",
    alike: str = "",
) -> PreparedRows[R]:
    """Read, clean, split.

    Args:
        source: what was named.
        read: one file or table -> its rows, under any name; counts and words what it left out in the notes.
        notes: what was said so far.
        facts: for `PreparedRows.facts`, or how to get them from the training file's rows.
        count: what a part holds how often.
        noun: what an example is called, in messages.
        alike: what of two examples is equal where their fingerprints are, if not all: "whose context is".

    Raises:
        DataError: nothing is left to train on, or too little to split.
    """
    notes = notes or Notes()
    main = read(source, notes)
    notes.choices[:0] = source.choices
    notes.warnings[:0] = source.warnings
    own = {name: part for name in ("validation", "test") if (part := source.part(name)) is not None}
    others = {name: _named(read(part, notes), name) for name, part in own.items()}
    _tell_left_out(notes)
    known = facts(main) if callable(facts) else facts
    main, others = _apart(source.config, main, others, notes, noun, alike)
    main = _sampled(source.config, main, notes, noun)
    parts = _divided(source.config, main, others, notes, noun)
    cut = {name: main.select(rows, name) for name, rows in vars(parts).items()} | others
    splits = (cut["train"], cut["validation"], cut["test"])
    return PreparedRows(
        *splits, tuple(notes.choices), tuple(notes.warnings), notes.counts, _content_hash(splits),
        source.config.source, facts=known, count=count,
    )  # fmt: skip


def _named(rows: R, name: str) -> R:
    return rows.select(np.arange(len(rows), dtype=np.int64), name)


def _tell_left_out(notes: Notes) -> None:
    """Rows that the readers left out, as a warning."""
    for name, what in (("empty_texts", "no text"), ("missing_labels", "no answer")):
        if n := notes.counts.get(name):
            notes.warnings.append(f"{counted(n, 'row')} with {what} left out.")


def _apart(
    config: DataConfig, main: R, others: dict[str, R], notes: Notes, noun: str, alike: str
) -> tuple[R, dict[str, R]]:
    """Without the examples that stand in a later part as well: train gives way to validation, both to test."""
    parts = {"train": main, **others}
    names, before = list(parts), main
    for place, early in enumerate(names):
        for late in names[place + 1 :]:
            shared = _among(parts[early].prints, parts[late].prints)
            if not shared.any():
                continue
            notes.counts[f"overlap_{early}_{late}"] = int(shared.sum())
            shares = f"{alike} also in" if alike else "also in"
            said = f"{counted(int(shared.sum()), noun)} of {early} {shares} {late}"
            if config.duplicates == "ignore":
                notes.warnings.append(f"{said}; kept ({setting('data.duplicates', 'ignore')}).")
                continue
            parts[early] = parts[early].select(np.flatnonzero(~shared).astype(np.int64), early)
            notes.warnings.append(f"{said}; left out of {early}.")
    main = parts.pop("train")
    if not len(main):
        why = f"each {noun} stands in the validation or test file as well" if len(before) else "it has none"
        both = setting("data.duplicates", "ignore")
        mend = f" Give other files there; {both} keeps them on both sides." if len(before) else ""
        raise DataError(f"{config.source}: no usable {noun} is left to train on: {why}.{mend}")
    return main, parts


def _among(these: UInts, those: UInts) -> NDArray[np.bool_]:
    groups = group_equal(np.concatenate([these, those])).of_row
    return np.isin(groups[: len(these)], groups[len(these) :])


def _sampled(config: DataConfig, main: R, notes: Notes, noun: str) -> R:
    if config.max_rows is None or len(main) <= config.max_rows:
        return main
    drawn = sample_rows(group_equal(main.prints), config.max_rows, config.seed)
    of = f"{len(drawn):,} of {len(main):,}"
    notes.choices.append(
        Choice(f"{noun}s", of, f"{setting('data.max_rows')}; drawn by the seed {config.seed}")
    )
    return main.select(drawn)


def _divided(config: DataConfig, main: R, others: Mapping[str, R], notes: Notes, noun: str) -> Parts:
    prints = main.prints
    if config.duplicates == "ignore":
        prints = prints.copy()
        prints[:, 0] += np.arange(len(main), dtype=np.uint64)
        prints[:, 1] = np.arange(len(main), dtype=np.uint64)
    groups = group_equal(prints)
    fractions = {
        "validation_fraction": 0.0 if "validation" in others else config.validation_fraction,
        "test_fraction": 0.0 if "test" in others else config.test_fraction,
    }
    strata = np.zeros(len(main), np.int64)
    parts = split_rows(groups, strata, seed=config.seed, **fractions)
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        if fractions[f"{name}_fraction"] > 0 and not len(part):
            raise DataError(
                f"{config.source}: {counted(len(main), f'usable {noun}')} ({len(groups.sizes):,} to be kept apart) "
                f"{'is' if len(main) == 1 else 'are'} too few to split off a {name} part. Use more, give a {name} file "
                f"(--{name}), or go without: --{name}-fraction 0."
            )
    sizes = {name: len(part) for name, part in vars(parts).items()} | {
        name: len(rows) for name, rows in others.items()
    }
    told = [f"{n:,} {name}{' (a file of its own)' if name in others else ''}" for name, n in sizes.items()]
    reason = f"equal {noun}s kept together, seed {config.seed}" if any(fractions.values()) else "as given"
    notes.choices.append(Choice("split", ", ".join(told), reason))
    return parts


def _content_hash(splits: tuple[ExampleRows, ...]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"\n{split.name} {len(split)}\n".encode())
        for place in range(len(split)):
            raw = split.content(place).encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
