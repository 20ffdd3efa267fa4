"""How sources of entities are recognised, read and split, for training and for measuring.

It joins the data room's rows with what a kind of task has to do; it knows no model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from veneer.data.choices import Choice, Notes, counted
from veneer.data.config import DataConfig
from veneer.data.entities import EntityRows, read_entities
from veneer.data.entity_columns import seems_entities, tokens_column
from veneer.data.examples import prepare_examples
from veneer.data.prepared import PreparedRows
from veneer.data.reading import read_inputs
from veneer.data.sources import Source
from veneer.data.tables import Stream, TableOptions, open_stream
from veneer.data.tags import bio_labels
from veneer.errors import DataError
from veneer.strict import StrictModel
from veneer.tasks.base import Input
from veneer.tasks.kind import InputStream, Labelled

__all__ = [
    "EntityOptions",
    "claims_entities",
    "entity_inputs",
    "entity_labels",
    "labelled_entities",
    "prepare_entities",
]

Prepared = PreparedRows[EntityRows]


class EntityOptions(StrictModel):
    """The task's own settings.

    tag_names    what the tags stand for where they are numbers, from 0 on
    """

    place: ClassVar[str | None] = "options."

    tag_names: tuple[str, ...] | None = None


def claims_entities(source: Source, decoder: bool | None) -> str | None:  # noqa: ARG001
    """Why a source looks like one of entities."""
    if len(source.columns) < 2 or "list" not in source.kinds.values():
        return None
    return seems_entities(source.loaded.table)


def prepare_entities(source: Source, options: EntityOptions) -> Prepared:
    """Read and split. Raises `DataError` for what can't be right."""
    first: list[EntityRows] = []

    def read(part: Source, notes: Notes) -> EntityRows:
        own = notes if not first else Notes()
        rows = _read(part, own, options.tag_names, first[0] if first else None)
        if first:
            notes.warnings += own.warnings
            for name, n in own.counts.items():
                notes.add(name, n)
        first.append(rows)
        return rows

    found = prepare_examples(
        source,
        read,
        facts=functools.partial(_facts, options),
        count=EntityRows.type_counts,
        noun="sentence",
    )
    return replace(found, warnings=(*found.warnings, *_rare(found)))


def _read(
    source: Source, notes: Notes, tag_names: tuple[str, ...] | None, like: EntityRows | None = None
) -> EntityRows:
    """The rows of a source; of a further file the same columns where it has them."""
    table, config = source.loaded.table, source.config
    text, label = _asked(config)
    if like is not None and {like.columns.text, like.columns.label} <= set(table.columns):
        text, label = like.columns.text, like.columns.label
    return read_entities(table, notes, text_column=text, label_column=label, tag_names=tag_names)


def _asked(config: DataConfig) -> tuple[str | None, str | None]:
    roles = config.columns
    text = config.text_column or roles.get("text") or roles.get("tokens")
    return text, config.label_column or roles.get("tags") or roles.get("spans") or roles.get("label")


def _facts(options: EntityOptions, rows: EntityRows) -> dict[str, Any]:
    return {
        "text_column": rows.columns.text,
        "label_column": rows.columns.label,
        "form": rows.columns.form,
        "tag_names": list(options.tag_names) if options.tag_names is not None else None,
    }


def entity_labels(prepared: Prepared) -> tuple[str, ...]:
    """The labels of the head: of every type that any part holds."""
    return bio_labels(kind for split in prepared.splits for kind, n in split.type_counts().items() if n)


def _rare(prepared: Prepared) -> list[str]:
    """Types that can't be learnt, because no training sentence holds one."""
    known = prepared.train.type_counts()
    found = []
    for split in prepared.splits[1:]:
        for kind, n in split.type_counts().items():
            if n and not known.get(kind):
                found.append(
                    f"{split.name} holds {counted(n, 'entity', 'entities')} of the type {kind!r}, train none: the type "
                    "can't be learnt, and each of them will be missed."
                )
    return found


def labelled_entities(known: tuple[str, ...], data: Mapping[str, Any], source: Source) -> Labelled:
    """Rows to measure on, read as training read them.

    Args:
        known: types that the adapter knows.
        data: veneer.json's `data`.
        source: a file, or what has a test part.
    """
    names = data.get("tag_names")
    options = EntityOptions(tag_names=tuple(names) if names else None)
    if not source.is_file:
        prepared = prepare_entities(source, options)
        if not len(prepared.test):
            raise DataError(f"{source.config.source} has no test part. Give a file of labelled sentences.")
        return Labelled(prepared.test, prepared.choices, prepared.warnings)
    notes = Notes()
    config = source.config
    if _asked(config) == (None, None) and {data.get("text_column"), data.get("label_column")} <= set(
        source.columns
    ):
        config = config.replace(text_column=data["text_column"], label_column=data["label_column"])
        source = Source(config, source.progress)
    rows = _read(source, notes, options.tag_names)
    choices = (*source.choices, *notes.choices)
    return Labelled(_without_unseen(rows, known), choices, (*source.warnings, *notes.warnings))


def _without_unseen(rows: EntityRows, known: tuple[str, ...]) -> EntityRows:
    """The rows, if they mark at least one entity of a known type (unknown types are the task's to refuse)."""
    if not set(rows.types) & set(known):
        raise DataError(
            f"{rows.table.path} marks {', '.join(map(repr, rows.types[:5]))}; this adapter knows "
            f"{', '.join(known)}. Is it the right file?"
        )
    return rows


class _TokenRows(Iterator[tuple[dict[str, Any], Input]]):
    """The rows of a file whose texts are lists of tokens, streamed; see `InputStream`."""

    def __init__(self, stream: Stream, column: str) -> None:
        self.columns = stream.columns
        self.kinds: Mapping[str, str] = stream.kinds
        self.choices = (*stream.choices, Choice("text column", column, "lists of tokens"))
        self._column = column
        self._rows = (row for batch in stream.batches for row in batch.to_pylist())

    def __next__(self) -> tuple[dict[str, Any], Input]:
        row = next(self._rows)
        return row, {"tokens": row[self._column] or ""}


def entity_inputs(path: Path, columns: Mapping[str, str], options: TableOptions | None = None) -> InputStream:
    """What is to be answered of a file: lists of tokens where it has them (CoNLL columns too), else texts.

    Raises:
        DataError: it can't be read, or it is not clear which column is the text.
    """
    given = columns.get("text") or columns.get("tokens")
    if path.suffix.lower() != ".txt":
        column = tokens_column(open_stream(path, options), given)
        if column is not None:
            return _TokenRows(open_stream(path, options), column)
    return read_inputs(path, ("text",), {} if given is None else {"text": given}, options=options)
