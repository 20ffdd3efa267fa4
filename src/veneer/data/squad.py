"""SQuAD's files: the nested form as flat records, and the answers in a cell.

Rajpurkar et al. 2016 (v1.1) and 2018 (v2): articles hold paragraphs, paragraphs hold a context and its questions. Flat,
each question is a row with its context. This file knows records and cells; it checks no answer against its context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from veneer.errors import DataError

__all__ = ["CELL_FORMS", "GoldAnswer", "flat_records", "parse_answers"]

CELL_FORMS = '{"text": ["..."], "answer_start": [0]} or [{"text": "...", "answer_start": 0}]'


@dataclass(frozen=True)
class GoldAnswer:
    """An answer that a person marked: context[start:start + len(text)] == text. `start` counts characters from 0."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Where it ends, exclusive."""
        return self.start + len(self.text)


def flat_records(records: Iterator[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """The records as they come; where they are SQuAD's articles, a record for each question instead.

    A question's record has id, title (of the article), context, question, answers (a list as in the file) and
    is_impossible, None where the file does not say; nothing else of the file is read. Raises `DataError` for an article
    that is not complete, with its place.
    """
    first = next(records, None)
    if first is None:
        return
    if "paragraphs" not in first:
        yield first
        yield from records
        return
    for number, article in enumerate(chain([first], records), start=1):
        at = f"{where}, article {number}"
        for place, paragraph in enumerate(_list(article, "paragraphs", at), start=1):
            spot = f"{at}, paragraph {place}"
            context = _text(paragraph, "context", spot)
            for order, asked in enumerate(_list(paragraph, "qas", spot), start=1):
                question = _text(asked, "question", f"{spot}, question {order}")
                yield {
                    "id": None if asked.get("id") is None else str(asked["id"]),
                    "title": article.get("title"),
                    "context": context,
                    "question": question,
                    "answers": asked.get("answers"),
                    "is_impossible": asked.get("is_impossible"),
                }


def _list(holder: Any, key: str, where: str) -> list[Any]:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, list):
        raise DataError(f"{where}: expected a list under {key!r}, as SQuAD's files have it.")
    return found


def _text(holder: Any, key: str, where: str) -> str:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    if not isinstance(found, str):
        raise DataError(f"{where}: expected a text under {key!r}, as SQuAD's files have it.")
    return found


def parse_answers(cell: str | None) -> tuple[GoldAnswer, ...] | None:
    """The answers in a cell of JSON, in either form of `CELL_FORMS`; None where the cell holds none.

    An object with two empty lists is (): the hub's form of SQuAD 2 says so that a question has no answer.

    Raises ValueError, whose text says what is wrong with the cell.

    >>> parse_answers('{"text": ["308"], "answer_start": [34]}')
    (GoldAnswer(text='308', start=34),)
    >>> parse_answers("[]"), parse_answers('{"text": [], "answer_start": []}')
    (None, ())
    """
    if cell is None or not cell.strip():
        return None
    try:
        found = json.loads(cell)
    except ValueError:
        raise ValueError(f"the answers {_short(cell)} are not JSON; expected {CELL_FORMS}") from None
    if isinstance(found, list):
        return tuple(map(_gold, found)) or None
    if not isinstance(found, dict) or not {"text", "answer_start"} <= found.keys():
        raise ValueError(f"the answers {_short(cell)} are not of the form {CELL_FORMS}")
    texts, starts = (value if isinstance(value, list) else [value] for value in _pair(found))
    if len(texts) != len(starts):
        raise ValueError(f"{len(texts)} answers with {len(starts)} answer_start; expected as many")
    return tuple(_gold({"text": t, "answer_start": s}) for t, s in zip(texts, starts, strict=True))


def _pair(found: Mapping[str, Any]) -> tuple[Any, Any]:
    return found["text"], found["answer_start"]


def _gold(found: Any) -> GoldAnswer:
    if not isinstance(found, dict) or not {"text", "answer_start"} <= found.keys():
        raise ValueError(f"an answer is {_short(json.dumps(found))}; expected its text and answer_start")
    text, start = _pair(found)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"an answer's text is {json.dumps(text)}; expected words of the context")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise ValueError(f"answer_start of {text!r} is {json.dumps(start)}; expected a number from 0")
    return GoldAnswer(text, start)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
