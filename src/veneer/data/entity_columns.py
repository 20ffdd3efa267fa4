"""Which columns of a table hold words and their tags, or a text and its spans.

Two forms: "tags" (a list of tokens, a list of tags as long) and "spans" (a text, a list of marked spans of
characters). It looks at names and at the first cells; where it is not clear it asks. It knows no scheme of tags.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from veneer.data.choices import Choice
from veneer.data.spans import SPAN_COLUMNS
from veneer.data.tables import Stream, Table
from veneer.errors import DataError, nearest
from veneer.naming import setting

__all__ = ["EntityColumns", "EntityForm", "find_entity_columns", "seems_entities", "tokens_column"]

EntityForm = Literal["tags", "spans"]

_TOKEN_NAMES = ("tokens", "words", "token", "word", "text", "sentence")
_TAG_NAMES = ("ner_tags", "tags", "ner", "ner_tag", "labels", "label", "tag", "entities")
_TEXT_NAMES = ("text", "sentence", "content", "body", "document", "message", "data")
_SURE = (_TOKEN_NAMES[:4], _TAG_NAMES[:4])  # names that nothing else has
_SURE_SPANS = 3
_MOST = 0.8  # of the rows
_FIRST_ROWS = 200


@dataclass(frozen=True)
class EntityColumns:
    """What is read: `form` "tags" with lists in `text` and `label`, or "spans" with a text and its spans."""

    form: EntityForm
    text: str
    label: str


def seems_entities(table: Table) -> str | None:
    """Why a table looks like one of entities, or None where it does not."""
    shapes = {column: _shape(table, column) for column in table.columns}
    found = _tag_columns(shapes) or _span_columns(shapes)
    if found is None:
        return None
    text, label = found
    if shapes[text] != "tags":
        return f"{label!r} marks spans of {text!r}"
    if not _as_long(table, text, label):
        return None
    return f"{text!r} and {label!r} are lists, a tag for each token"


def find_entity_columns(
    table: Table, text: str | None = None, label: str | None = None
) -> tuple[EntityColumns, list[Choice]]:
    """The columns that are given, checked, or those whose names and cells say what they are.

    Raises:
        DataError: a column that is not there, is no list, or it is not clear which ones they are.
    """
    for given in (text, label):
        if given is not None and given not in table.columns:
            mend = nearest(given, table.columns) or f"Columns: {', '.join(table.columns)}."
            raise DataError(f"{table.path} has no column {given!r}. {mend}")
    shapes = {column: _shape(table, column) for column in table.columns}
    if text is not None:
        shapes = {c: s for c, s in shapes.items() if c == text or s in ("tags", "numbers", "spans", "empty")}
    if label is not None:
        shapes = {c: s for c, s in shapes.items() if c == label or s in ("tags", "text", "empty")}
    for form in (_tag_columns, _span_columns):
        found = form(shapes, text, label)
        if found is not None:
            break
    if found is None:
        raise DataError(_unclear(table, text, label))
    columns = EntityColumns("spans" if form is _span_columns else "tags", *found)
    tags = f"has a tag for each word of {columns.text!r}"
    how = tags if columns.form == "tags" else "marks spans of characters"
    choices = [Choice("text column", columns.text, "its name and its cells")] if text is None else []
    choices += [Choice("label column", columns.label, f"it {how}")] if label is None else []
    return columns, choices


def tokens_column(stream: Stream, given: str | None = None) -> str | None:
    """The column of lists of tokens of a file to answer, None where it has none; reads the stream's first rows."""
    import pyarrow as pa

    first = next((batch for batch in stream.batches if batch.num_rows), None)
    if first is None or (given is not None and given not in stream.columns):
        return None
    table = Table(stream.path, pa.Table.from_batches([first]), stream.kinds)
    lists = [c for c in ([given] if given is not None else table.columns) if _shape(table, c) == "tags"]
    return next(iter(_by_name(lists, _TOKEN_NAMES)), None)


Shapes = dict[str, str]


def _tag_columns(shapes: Shapes, text: str | None = None, label: str | None = None) -> tuple[str, str] | None:
    """A column of lists of strings, and another with as many strings or numbers in each row."""
    lists = [c for c, s in shapes.items() if s == "tags"]
    words = [text] if text is not None else _by_name(lists, _TOKEN_NAMES)
    if not words or shapes.get(words[0]) != "tags":
        return None
    others = [c for c, s in shapes.items() if s in ("tags", "numbers") and c != words[0]]
    tags = [label] if label is not None else _by_name(others, _TAG_NAMES)
    return (words[0], tags[0]) if tags and tags[0] in others else None


def _span_columns(
    shapes: Shapes, text: str | None = None, label: str | None = None
) -> tuple[str, str] | None:
    """A column of text, and one with lists of spans."""
    empty = [c for c, s in shapes.items() if s == "empty" and c.lower() in SPAN_COLUMNS[:_SURE_SPANS]]
    # Where no list has a span, the name of the column says what its empty lists are.
    marked = [c for c, s in shapes.items() if s == "spans"] or empty
    spans = [label] if label is not None else _by_name(marked, SPAN_COLUMNS)
    texts = [c for c, s in shapes.items() if s == "text" and c != label]
    found = [text] if text is not None else _by_name(texts, _TEXT_NAMES)
    if not spans or not found or shapes.get(found[0]) != "text":
        return None
    return (found[0], spans[0]) if spans[0] in marked else None


def _by_name(columns: list[str], names: tuple[str, ...]) -> list[str]:
    """The column with the most usual name; the only one, whatever its name; else none."""
    usual = sorted((c for c in columns if c.lower() in names), key=lambda c: names.index(c.lower()))
    return usual[:1] or (columns if len(columns) == 1 else [])


def _shape(table: Table, column: str) -> str:
    """ "text", "tags" (lists of strings), "numbers" (lists of whole numbers), "spans", "empty" (lists) or "other"."""
    rows = np.arange(min(len(table), _FIRST_ROWS), dtype=np.int64)
    cells = [cell for cell in table.take(column, rows) if cell is not None and cell.strip()]
    kind = table.kinds.get(column, "text")
    if kind in ("string", "text") and not all(cell.lstrip().startswith("[") for cell in cells):
        return "text"
    shapes = {_list_shape(cell) for cell in cells}
    if kind != "list" and shapes - {"empty", "spans"}:
        return "text" if kind in ("string", "text") else "other"
    shapes.discard("empty")
    return shapes.pop() if len(shapes) == 1 else ("other" if shapes else "empty")


def _as_long(table: Table, text: str, label: str) -> bool:
    """Whether most of the first rows have as many tags as tokens; those that have not are named when they are read.

    Columns with names such as "tokens" and "ner_tags" are taken as they are.
    """
    if text.lower() in _SURE[0] and label.lower() in _SURE[1]:
        return True
    rows = np.arange(min(len(table), _FIRST_ROWS), dtype=np.int64)
    pairs = zip(table.take(text, rows), table.take(label, rows), strict=True)
    found = [len(json.loads(a or "[]")) == len(json.loads(b or "[]")) for a, b in pairs]
    return sum(found) >= _MOST * len(found)


def _list_shape(cell: str) -> str:
    try:
        values: Any = json.loads(cell)
    except json.JSONDecodeError:
        return "other"
    if not isinstance(values, list):
        return "other"
    if not values:
        return "empty"
    given = [value for value in values if value is not None]  # what is missing is named when it is read
    if given and all(isinstance(value, str) for value in given):
        return "tags"
    if given and all(isinstance(value, int) and not isinstance(value, bool) for value in given):
        return "numbers"
    marked = all(
        (isinstance(value, dict) and any(key in value for key in ("start", "start_offset", "begin")))
        or (isinstance(value, list) and len(value) == 3 and isinstance(value[0], int))
        for value in values
    )
    return "spans" if marked else "other"


def _unclear(table: Table, text: str | None, label: str | None) -> str:
    named = " and ".join(repr(column) for column in (text, label) if column is not None)
    about = f"with {named} " if named else ""
    return (
        f"{table.path}: {about}it is not clear where the entities are. Expected lists of tokens and of tags as long "
        '(columns "tokens" and "tags" or "ner_tags"), or a text and lists of spans ("text" and "spans" or '
        f'"entities", each with start, end, label), or CoNLL columns. Columns here: {", ".join(table.columns)}. '
        f"Say which with {setting('data.text_column')} and {setting('data.label_column')}."
    )
