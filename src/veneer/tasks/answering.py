"""Answers for a file of inputs, of any size: read in pieces, answered, written whole or not at all.

    answer_file(adapted, "new.csv", "answers.csv")

The columns of the file are kept, and the answer is added behind them. This file knows rows and answers; it knows no
terminal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veneer.data.reading import read_inputs
from veneer.data.tables import TableOptions
from veneer.errors import DataError, InputError, UserMistake
from veneer.files import replacing_file, writing_to
from veneer.naming import setting
from veneer.tasks.base import Answer, Input
from veneer.tasks.kind import InputStream
from veneer.tasks.row_files import free_name, row_writer

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = ["Answered", "answer_file", "answer_texts", "check_out", "open_inputs", "read_lines"]

CHUNK = 1024
"""Texts that are in memory at a time."""

_SUFFIXES = (".csv", ".tsv", ".jsonl")

Rows = Iterator[tuple[dict[str, Any], Input, Answer]]


@dataclass(frozen=True)
class Answered:
    """What was done: rows in all, rows without an input (they get no answer), and the names of the new columns."""

    rows: int
    empty: int
    columns: tuple[str, ...]


def check_out(out: Path, source: Path, *, overwrite: bool) -> None:
    """Raise `UserMistake` where answers can't be written to `out`: unknown suffix, a file that stands there, or the
    very file that is answered."""
    if out.suffix.lower() not in _SUFFIXES:
        raise UserMistake(
            f"{setting('call.out', out)}: the format is told by the name, which has to end in {', '.join(_SUFFIXES)}."
        )
    with writing_to(out):
        exists = out.exists()
    if exists and out.is_dir():
        raise UserMistake(f"{setting('call.out', out)} is a folder; expected the name of a file.")
    if exists and source.exists() and out.samefile(source):
        raise UserMistake(
            f"{setting('call.out', out)} is the file that is read, which would be lost. Give another name."
        )
    if exists and not overwrite:
        raise UserMistake(
            f"{out} exists already. Give {setting('call.overwrite', True)} to replace it, or another name with "
            f"{setting('call.out')}."
        )


def answer_texts(
    adapted: Adapted,
    rows: Iterable[tuple[dict[str, Any], Input]],
    *,
    chunk: int = CHUNK,
    called: str = "input",
) -> Rows:
    """(row, input, answer) for each (row, input), in order; where an input is empty, an answer of None in every key.

    `called` is what an input is to who gave it, for errors: "new.csv, row".
    """
    waiting, done = iter(rows), 0
    while piece := list(islice(waiting, chunk)):
        places = [place for place, (_, given) in enumerate(piece) if not _empty(given)]
        try:
            found = iter(adapted.predict([piece[place][1] for place in places]))
        except InputError as error:
            raise DataError(f"{called} {done + places[error.place] + 1:,}{error.says}") from None
        done += len(piece)
        for row, given in piece:
            yield row, given, dict.fromkeys(adapted.task.answer_keys) if _empty(given) else next(found)


def _empty(given: Input) -> bool:
    texts = [given] if isinstance(given, str) else given.values()
    return not all(text.strip() for text in texts)


def open_inputs(
    adapted: Adapted, source: str | Path, columns: Mapping[str, str], options: TableOptions | None = None
) -> InputStream:
    """The rows of a file with what the adapter reads of each.

    Args:
        adapted: whose inputs are looked for.
        source: csv, tsv, json, jsonl, parquet, txt with a text a line, or what else its kind reads.
        columns: input -> column; those that are not named are the columns of training, or inferred.
        options: how the file is written; None: inferred.

    Raises:
        DataError: it can't be read, or it is not clear which column is which.
    """
    own = adapted.kind.inputs_from
    if own is not None:
        return own(Path(source), columns, options)
    data: dict[str, Any] = adapted.facts.data if adapted.facts is not None else {}
    trained = {name: data.get(f"{name}_column") for name in adapted.task.inputs}
    known = {name: str(column) for name, column in trained.items() if column}
    return read_inputs(source, adapted.task.inputs, columns, known, options)


def answer_file(
    adapted: Adapted,
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    options: TableOptions | None = None,
    all_probabilities: Sequence[str] = (),
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Answered:
    """Write the rows of `source` with their answers to `out`, whose suffix tells the format.

    Args:
        adapted: who answers.
        source: csv, tsv, json, jsonl, parquet, or txt with a text a line.
        out: .csv, .tsv or .jsonl.
        columns: input -> column to read ("text" -> "message"); those that are not named are inferred.
        options: how `source` is written; None: inferred.
        all_probabilities: labels whose probabilities get a column each.
        overwrite: replace a file that stands there.
        progress: told the rows that are done.

    Raises:
        DataError: `source` can't be read.
        UserMistake: `out` exists, is `source`, or its suffix is not known. An older file is untouched after any error.
    """
    out = Path(out)
    check_out(out, Path(source), overwrite=overwrite)
    stream = open_inputs(adapted, source, columns or {}, options)
    added = [*adapted.task.answer_keys, *(f"probability_{label}" for label in all_probabilities)]
    names = {key: free_name(key, stream.columns) for key in added}
    rows = empty = 0
    with replacing_file(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        put = row_writer(file, out.suffix.lower(), stream.columns, stream.kinds, tuple(names.values()))
        for row, given, answer in answer_texts(adapted, stream, called=f"{source}, row"):
            found = _columns(answer, adapted.task.answer_keys, all_probabilities)
            put(row, {names[key]: value for key, value in found.items()})
            rows, empty = rows + 1, empty + _empty(given)
            if rows % CHUNK == 0:
                progress(rows)
    return Answered(rows, empty, tuple(names.values()))


def _columns(answer: Answer, keys: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """An answer as column -> value; of the single probabilities only those of `labels`."""
    chances = answer.get("probabilities") or {}
    return {key: answer[key] for key in keys} | {
        f"probability_{label}": chances.get(label) for label in labels
    }


def read_lines(
    file: Iterable[str], names: Sequence[str] = ("text",)
) -> Iterator[tuple[dict[str, Any], Input]]:
    """An input a line, as `answer_texts` takes it: a text, or with several names a JSON object or texts with tabs
    between them.

    Raises:
        DataError: a line is not UTF-8, or has not as many texts as there are names.
    """
    try:
        for number, line in enumerate(file, start=1):
            text = line.rstrip("\r\n")
            yield {}, text if len(names) == 1 else _several(text, names, number)
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _several(line: str, names: Sequence[str], number: int) -> dict[str, str]:
    if not line.strip():
        return dict.fromkeys(names, "")
    if line.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if set(found) == set(names):
                return {name: str(found[name]) for name in names}
    texts = line.split("\t")
    if len(texts) == len(names):
        return dict(zip(names, texts, strict=True))
    raise DataError(
        f"line {number} of standard input: expected {' and '.join(names)}, with a tab between them or as a JSON object "
        f"with these keys; got {line[:60]!r}."
    )
