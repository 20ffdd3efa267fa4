"""Records of a JSON file (a list of records, or {"data": [...]}) or of JSON lines, one at a time.

It streams: a file of any size is never in memory whole. It knows nothing of columns or tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veneer.errors import DataError

__all__ = ["iterate_json", "iterate_json_lines"]

Record = dict[str, Any]
_CHUNK = 1 << 20
_LONGEST_WORD = 64  # a number or a name that the buffer's end cuts is not longer
_TOO_DEEP = "lists or objects stand in each other hundreds of levels deep; expected rows of texts and labels"
_SPACE = re.compile(r"\s*")


def iterate_json_lines(path: Path, encoding: str) -> Iterator[Record]:
    """One record a line; blank lines are passed over. Raises `DataError` with the line number."""
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not valid JSON ({error.msg} at character {error.pos + 1}). "
                    'Each line has to be one complete object, such as {"text": ..., "label": ...}.'
                ) from None
            except RecursionError:
                raise DataError(f"{path}, line {number}: {_TOO_DEEP}.") from None
            yield _checked(record, f"{path}, line {number}")


def iterate_json(path: Path, encoding: str) -> Iterator[Record]:
    """The records of a list, or of the list under "data" in an object. Raises `DataError` with the place."""
    with path.open(encoding=encoding) as file:
        reader = _Reader(path, file)
        if reader.peek() == "{":
            reader.skip_to_data()
        if reader.peek() != "[":
            raise DataError(
                f'{path}: expected a list of records, or an object with such a list under "data"; '
                f"found {reader.peek()!r} at line {reader.line}. One object a line is the format jsonl."
            )
        reader.advance(1)
        number = 0
        while reader.peek() != "]":
            if number:
                reader.expect(",")
            number += 1
            yield _checked(reader.value(), f"{path}, record {number}")


def _checked(record: Any, where: str) -> Record:
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise DataError(f'{where}: expected an object such as {{"text": ..., "label": ...}}, found a {kind}.')
    return record


class _Reader:
    """JSON values out of a file, with a buffer no larger than a few chunks or the largest value."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False
        self.decoder = json.JSONDecoder()

    def fill(self) -> None:
        """Read on: what was passed leaves the buffer, and at least as much as is left in it comes behind."""
        # What is read doubles, so that large values stay linear.
        chunk = self.file.read(max(_CHUNK, len(self.buffer) - self.at))
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at, self.ended = self.buffer[self.at :] + chunk, 0, not chunk

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            space = _SPACE.match(self.buffer, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                raise self.fault("the file ends in the middle; it seems to be cut off")
            self.fill()

    def advance(self, n: int) -> None:
        """Pass n characters of the buffer."""
        self.at += n

    def expect(self, sign: str) -> None:
        """Pass white space and this one character; `DataError` where another stands there."""
        if self.peek() != sign:
            raise self.fault(f"expected {sign!r}, found {self.peek()!r}")
        self.advance(1)

    def value(self) -> Any:
        """Pass the next JSON value and give it, as `json.loads` would.

        Raises:
            DataError: it is no JSON, ends with the file, or lists stand in each other without end.
        """
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self.buffer) - _LONGEST_WORD or error.msg.startswith(
                    "Unterminated"
                )
                if self.ended or not cut_off:
                    self.at = error.pos
                    raise self.fault(f"not valid JSON: {error.msg}") from None
            except RecursionError:
                raise self.fault(_TOO_DEEP) from None
            else:
                if end < len(self.buffer) or self.ended:  # a number at the buffer's end may go on
                    self.at = end
                    return value
            self.fill()

    def skip_to_data(self) -> None:
        """Stand before the value of "data" in the object that begins here."""
        self.advance(1)
        seen: list[str] = []
        while self.peek() != "}":
            if seen:
                self.expect(",")
            name = self.value()
            self.expect(":")
            if name == "data":
                return
            seen.append(str(name))
            self.value()
        raise DataError(
            f'{self.path}: an object without the key "data" (keys: {", ".join(seen[:8]) or "none"}); '
            'expected a list of records, or {"data": [...]}.'
        )

    def fault(self, what: str) -> DataError:
        """An error, to be raised, that names the file and the line (from 1) where the reader stands."""
        line = self.line + self.buffer.count("\n", 0, self.at)
        return DataError(f"{self.path}, line {line}: {what}.")
