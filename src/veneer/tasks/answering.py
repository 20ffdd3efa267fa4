"""Answers for a file of texts, of any size: read in pieces, answered, written whole or not at all.

    answer_file(adapted, "new.csv", "answers.csv")

The columns of the file are kept, and the answer is added behind them. This file knows rows and answers; it knows no
terminal.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from veneer.data.reading import TextStream, read_texts
from veneer.errors import DataError, UserMistake
from veneer.files import replacing_file
from veneer.tasks.base import Answer

__all__ = ["Answered", "Answers", "answer_file", "answer_texts", "check_out", "read_lines"]

CHUNK = 1024
"""Texts that are in memory at a time."""

_SUFFIXES = (".csv", ".tsv", ".jsonl")

Rows = Iterator[tuple[dict[str, Any], str, Answer]]


class Answers(Protocol):
    """Whoever answers texts, such as an `Adapted`."""

    def predict(self, texts: Sequence[str]) -> list[Answer]:
        """An answer for each text."""
        ...


@dataclass(frozen=True)
class Answered:
    """What was done: rows in all, rows without a text (they get no answer), and the names of the new columns."""

    rows: int
    empty: int
    columns: tuple[str, ...]


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise `UserMistake` where answers can't be written to `out`: unknown suffix, or a file that stands there."""
    if out.suffix.lower() not in _SUFFIXES:
        raise UserMistake(
            f"--out {out}: the format is told by the name, which has to end in {', '.join(_SUFFIXES)}."
        )
    if out.is_dir():
        raise UserMistake(f"--out {out} is a folder; expected the name of a file.")
    if out.exists() and not overwrite:
        raise UserMistake(
            f"{out} exists already. Give --overwrite to replace it, or another name with --out."
        )


def answer_texts(answers: Answers, rows: Iterable[tuple[dict[str, Any], str]], *, chunk: int = CHUNK) -> Rows:
    """(row, text, answer) for each (row, text), in order; where there is no text, an answer of None in every key."""
    waiting = iter(rows)
    blank: Answer | None = None
    while piece := list(islice(waiting, chunk)):
        found = iter(answers.predict([text for _, text in piece if text.strip()]))
        for row, text in piece:
            if text.strip():
                yield row, text, next(found)
            else:
                blank = blank or dict.fromkeys(answers.predict(["a"])[0])
                yield row, text, blank


def answer_file(
    answers: Answers,
    source: str | Path,
    out: str | Path,
    *,
    text_column: str | None = None,
    all_probabilities: Sequence[str] = (),
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Answered:
    """Write the rows of `source` with their answers to `out`, whose suffix tells the format.

    Args:
        answers: who answers.
        source: csv, tsv, json, jsonl, parquet, or txt with a text a line.
        out: .csv, .tsv or .jsonl.
        text_column: the column to read; None infers it.
        all_probabilities: labels whose probabilities get a column each.
        overwrite: replace a file that stands there.
        progress: told the rows that are done.

    Raises:
        DataError: `source` can't be read.
        UserMistake: `out` exists, or its suffix is not known. An older file is untouched after any error.
    """
    out = Path(out)
    check_out(out, overwrite=overwrite)
    stream = read_texts(source, text_column)
    columns = _columns(answers.predict(["a"])[0], all_probabilities)
    names = {key: _free_name(key, stream.columns) for key in columns}
    rows = empty = 0
    with replacing_file(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        put = _rows_to(file, out.suffix.lower(), stream, names)
        for row, text, answer in answer_texts(answers, stream):
            found = _columns(answer, all_probabilities)
            put(row, {names[key]: value for key, value in found.items()})
            rows, empty = rows + 1, empty + (not text.strip())
            if rows % CHUNK == 0:
                progress(rows)
    return Answered(rows, empty, tuple(names.values()))


def _columns(answer: Answer, labels: Sequence[str]) -> dict[str, Any]:
    """An answer as column -> value; of the single probabilities only those of `labels`."""
    found = {key: value for key, value in answer.items() if key != "probabilities"}
    chances = answer["probabilities"] or {} if labels else {}
    return found | {f"probability_{label}": chances.get(label) for label in labels}


def _free_name(name: str, taken: Sequence[str]) -> str:
    """The name, with "predicted_" before it where the file has such a column already."""
    while name in taken:
        name = f"predicted_{name}"
    return name


def _rows_to(
    file: IO[str], suffix: str, stream: TextStream, names: Mapping[str, str]
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A function that writes a row and its answer; a table's header is written at once."""
    if suffix == ".jsonl":

        def put_json(row: dict[str, Any], answer: dict[str, Any]) -> None:
            values = {name: _value(row[name], stream.kinds.get(name, "text")) for name in stream.columns}
            file.write(json.dumps(values | answer, ensure_ascii=False) + "\n")

        return put_json
    table = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    table.writerow([*stream.columns, *names.values()])

    def put(row: dict[str, Any], answer: dict[str, Any]) -> None:
        table.writerow([*(row[name] for name in stream.columns), *map(_cell, answer.values())])

    return put


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else value


def _value(cell: Any, kind: str) -> Any:
    """A cell as it was in a file of JSON or parquet, where it was more than text."""
    if not isinstance(cell, str) or kind not in ("int", "float", "bool", "list", "object"):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def read_lines(file: Iterable[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """A text a line, as `answer_texts` takes it.

    Raises:
        DataError: a line is not UTF-8.
    """
    try:
        for line in file:
            yield {}, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
