"""Entities marked as spans of characters: {"text": ..., "spans": [{"start", "end", "label"}, ...]} -> tags of words.

Spans have to agree with their text; what cannot be right is an error that names the row. This module knows one row at
a time, and no file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veneer.data.tags import Entity
from veneer.data.words import Places

__all__ = ["SPAN_COLUMNS", "CharSpan", "SpanError", "entities_on_words", "parse_spans"]

SPAN_COLUMNS = ("spans", "entities", "ents", "annotations", "labels", "label")
_LABEL_KEYS = ("label", "type", "tag", "entity", "entity_group", "entity_type")
_START_KEYS, _END_KEYS = ("start", "start_offset", "begin"), ("end", "end_offset", "stop")


class SpanError(Exception):
    """What is wrong with the spans of a row, in words; whoever reads the file adds where."""


@dataclass(frozen=True, order=True)
class CharSpan:
    """An entity: characters from `start` to before `end`, and its type."""

    start: int
    end: int
    label: str


def parse_spans(text: str, cell: str | None) -> list[CharSpan]:
    """The spans of a row in their order, held against the text. `cell` is JSON: objects, or [start, end, label].

    Raises:
        SpanError: not such a list, outside of the text, empty, overlapping, or another text than the span says.
    """
    if cell is None or not cell.strip():
        return []
    try:
        listed = json.loads(cell)
    except json.JSONDecodeError as error:
        raise SpanError(f"its spans are not valid JSON ({error.msg})") from None
    if not isinstance(listed, list):
        raise SpanError(f"its spans are {type(listed).__name__}; expected a list of objects")
    spans = sorted(_span(text, one) for one in listed)
    for before, after in itertools.pairwise(spans):
        if after.start < before.end:
            raise SpanError(
                f"spans overlap: {_shown(text, before)} and {_shown(text, after)}. A word has one type; keep one "
                "of them"
            )
    return spans


def _span(text: str, given: Any) -> CharSpan:
    if isinstance(given, list) and len(given) == 3:
        given = dict(zip(("start", "end", "label"), given, strict=True))
    if not isinstance(given, Mapping):
        raise SpanError(
            f'a span is {json.dumps(given)[:60]}; expected {{"start": ..., "end": ..., "label": ...}}'
        )
    start, end, label = (_value(given, keys) for keys in (_START_KEYS, _END_KEYS, _LABEL_KEYS))
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    if not whole or not isinstance(label, str) or not label.strip():
        raise SpanError(
            f"the span {json.dumps(given, ensure_ascii=False)[:80]} needs whole numbers start and end, and a label"
        )
    if not 0 <= start < end <= len(text):
        raise SpanError(
            f"the span {start}-{end} ({label}) does not lie in the text, which has {len(text)} characters; "
            "characters are counted from 0, the end is not part of it"
        )
    said = given.get("text")
    if isinstance(said, str) and said != text[start:end]:
        raise SpanError(
            f"the span {start}-{end} says {said!r}, the text has {text[start:end]!r} there; count characters "
            "(code points), not bytes or UTF-16 units"
        )
    return _trimmed(text, CharSpan(start, end, label.strip()))


def _value(given: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((given[key] for key in keys if key in given), None)


def _trimmed(text: str, span: CharSpan) -> CharSpan:
    """Without blanks at its ends."""
    inside = text[span.start : span.end]
    if not inside.strip():
        raise SpanError(f"the span {span.start}-{span.end} ({span.label}) holds blanks only")
    start = span.start + len(inside) - len(inside.lstrip())
    return CharSpan(start, start + len(inside.strip()), span.label)


def _shown(text: str, span: CharSpan) -> str:
    return f"{text[span.start : span.end][:30]!r} ({span.start}-{span.end}, {span.label})"


def entities_on_words(spans: list[CharSpan], words: Places) -> tuple[list[Entity], int, int]:
    """The entities as words, how many spans cut a word, and how many mark no word of their own.

    A span that cuts a word takes in the whole word. One whose words all belong to an earlier span, or that covers no
    word, is left out.
    """
    found: list[Entity] = []
    cut = lost = place = free = 0
    for span in spans:
        while place < len(words) and words[place][1] <= span.start:
            place += 1
        stop = first = max(place, free)
        while stop < len(words) and words[stop][0] < span.end:
            stop += 1
        if first == stop:
            lost += 1
            continue
        cut += words[first][0] < span.start or words[stop - 1][1] > span.end or first > place
        found.append((first, stop, span.label))
        free = stop
    return found, cut, lost
