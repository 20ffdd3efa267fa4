"""Questions about contexts as features of a model, and as a person sees them: the joint of rows, windows and spans.

This file knows rows of questions, tokenizers and numbers; it knows no model.

Shapes: N questions, M windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.data.characters import whole_characters
from veneer.data.choices import counted
from veneer.data.hashing import group_equal
from veneer.data.preview import PreviewText, ShownToken
from veneer.data.questions import Question, Questions
from veneer.errors import DataError, InputError
from veneer.naming import setting
from veneer.tasks.base import Encoded, Input
from veneer.tasks.windows import Pair, Placed, Windows, place_answers, split_windows

__all__ = ["INPUTS", "Asked", "asked_of", "encode_asked", "encode_questions", "pieces", "shown_question"]

INPUTS = ("question", "context")
_PIECE = 1024


@dataclass(frozen=True)
class Asked:
    """What is needed to turn numbers into answers.

    Attributes:
        windows: M windows of N questions.
        questions, contexts: N texts each.
        gold: N times the texts of the gold answers, () where there is none; None: not known.
        groups: (N,) int64, equal for questions about one context.
        placed: where the answers lie.
    """

    windows: Windows
    questions: Sequence[str]
    contexts: Sequence[str]
    gold: Sequence[tuple[str, ...]] | None = None
    groups: NDArray[np.int64] | None = None
    placed: Placed | None = None


def encode_questions(rows: Questions, tokenizer: Any, max_length: int, doc_stride: int) -> Encoded:
    """Questions with their answers as windows whose targets are the first and last token of the answer.

    Of several gold answers the first is trained on, as in transformers' example; all of them count when an answer is
    measured.

    Raises:
        DataError: questions that are too long, with their rows.
    """
    known: dict[str, str] = {}  # many questions share a context: one copy of it
    asked, contexts, answers, gold = [], [], [], []
    for one in rows:
        asked.append(one.question)
        contexts.append(known.setdefault(one.context, one.context))
        answers.append(_characters(one))
        gold.append(tuple(answer.text for answer in one.answers))
    pairs = zip(asked, contexts, strict=True)
    try:
        windows = split_windows(
            pieces(pairs), tokenizer, max_length, doc_stride, lambda place: _row(rows, place)
        )
    except DataError as error:
        raise DataError(f"{rows.table.path}, {error}") from None
    placed = place_answers(windows, answers, [len(context) for context in contexts])
    details = Asked(windows, asked, contexts, gold, group_equal(rows.prints).of_row, placed)
    return _encoded(windows, details, placed.targets)


def _row(rows: Questions, place: int) -> str:
    one = rows[place]
    return f"row {one.row + 1:,}" + (f" (id {one.id})" if rows.columns.id else "")


def encode_asked(inputs: Sequence[Input], tokenizer: Any, max_length: int, doc_stride: int) -> Encoded:
    """Inputs as windows. Raises `DataError` for one without a question or a context."""
    pairs = [_pair(one, place) for place, one in enumerate(inputs)]
    windows = split_windows(pieces(pairs), tokenizer, max_length, doc_stride)
    asked, contexts = [question for question, _ in pairs], [context for _, context in pairs]
    return _encoded(windows, Asked(windows, asked, contexts), None)


def _encoded(windows: Windows, details: Asked, targets: NDArray[np.int64] | None) -> Encoded:
    return Encoded(
        windows.ids,
        targets,
        segments=windows.segments,
        example=windows.example,
        details=details,
        longest=int(windows.lengths.max(initial=0)),
        full_lengths=windows.lengths,
    )


def pieces(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs in pieces for the tokenizer."""
    waiting = iter(pairs)
    while piece := list(islice(waiting, _PIECE)):
        yield piece


def asked_of(encoded: Encoded) -> Asked:
    """The details that this file put there."""
    assert isinstance(encoded.details, Asked)
    return encoded.details


def _pair(one: Input, place: int) -> Pair:
    given: Mapping[str, Any] = {"context": one} if isinstance(one, str) else one
    missing = [name for name in INPUTS if not isinstance(given.get(name), str) or not given[name].strip()]
    if missing or set(given) - set(INPUTS):
        extra = [name for name in given if name not in INPUTS]
        fault = f"has no {' and no '.join(missing)}" if missing else f"gives {extra[0]!r} too"
        both = " and ".join(setting(f"call.{name}", plain=repr(name)) for name in ("question", "context"))
        raise InputError(
            place,
            f" {fault}; this adapter answers a question about a context: give {both}, each a text.",
        )
    return given["question"], given["context"]


def _characters(one: Question) -> tuple[int, int] | None:
    """The characters of the first gold answer, without white space at their ends and with whole ones there."""
    if not one.answers:
        return None
    gold = one.answers[0]
    start = gold.start + len(gold.text) - len(gold.text.lstrip())
    return whole_characters(one.context, start, start + len(gold.text.strip()))


def shown_question(
    rows: Questions, place: int, tokenizer: Any, max_length: int, doc_stride: int
) -> PreviewText:
    """A question as the model reads it: the window that holds the answer (else the first), the answer's tokens marked.

    The title says which of how many windows it is.
    """
    encoded = encode_questions(rows.select(np.array([place])), tokenizer, max_length, doc_stride)
    asked = asked_of(encoded)
    assert asked.placed is not None
    windows, targets = asked.windows, asked.placed.targets
    held = np.flatnonzero(targets[:, 0] != windows.null)
    which = int(held[0]) if len(held) else 0
    gold = asked.gold[0] if asked.gold is not None else ()
    answer = f"answer {gold[0]!r}" if gold else "no answer"
    title = f"window {which + 1} of {counted(len(windows), 'window')}" if len(windows) > 1 else "one window"
    tokens = tuple(_shown(windows, which, targets[which], asked, tokenizer))
    text = f"{asked.questions[0]}\n{asked.contexts[0]}"
    return PreviewText(rows.name, place, (answer, title), int(windows.lengths[0]), text, tokens)


def _shown(
    windows: Windows, which: int, target: NDArray[np.int64], asked: Asked, tokenizer: Any
) -> Iterator[ShownToken]:
    """The tokens of a window; each of the context shows its characters with the blanks before it."""
    ids = windows.ids[which].tolist()
    names = tokenizer.convert_ids_to_tokens(ids)
    special = set(tokenizer.all_special_ids)
    begin, spans = int(windows.begin[which]), windows.spans[which]
    done = int(spans[0, 0]) if len(spans) else 0
    question = iter(_question_pieces(asked.questions[0], tokenizer))
    for at, (token, name) in enumerate(zip(ids, names, strict=True)):
        read = bool(target[0] <= at <= target[1])
        if begin <= at < begin + len(spans):
            end = int(spans[at - begin, 1])
            piece = asked.contexts[0][done:end] if end > done else name
            done = max(done, end)
            yield ShownToken(piece, target=read)
        elif token in special:
            yield ShownToken(name, special=True, target=read)
        else:
            yield ShownToken(next(question, name), target=read)


def _question_pieces(question: str, tokenizer: Any) -> list[str]:
    """The question's tokens as its characters."""
    found = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    names = tokenizer.convert_ids_to_tokens(found["input_ids"])
    shown, done = [], 0
    for name, (_, end) in zip(names, found["offset_mapping"], strict=True):
        shown.append(question[done:end] if end > done else name)
        done = max(done, end)
    return shown
