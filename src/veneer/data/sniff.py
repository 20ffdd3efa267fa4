"""What kind of text file this is: readable at all, its encoding, its delimiter, whether it has a header.

It looks at bytes and at the first rows. It knows nothing of columns' meanings, and builds no table.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from veneer.data.choices import Choice
from veneer.errors import DataError, nearest
from veneer.naming import settable, setting

__all__ = ["CsvLayout", "check_readable", "csv_quoting", "find_encoding", "find_layout", "long_fields"]

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
USUAL_NAMES = frozenset(
    {
        "text", "texts", "message", "messages", "sentence", "body", "content", "comment", "review", "tweet",
        "utterance", "label", "labels", "category", "class", "sentiment", "target", "intent", "instruction",
        "input", "output", "prompt", "completion", "question", "answer", "premise", "hypothesis", "sentence1",
        "sentence2", "text_a", "text_b", "text1", "text2",
    }
)  # fmt: skip
SAMPLE_BYTES = 1 << 18  # characters of the file's top that the layout is inferred from
_CHUNK = 1 << 20
_STRAY, _BEYOND_ASCII = re.compile("[\udc80-\udcff]"), re.compile(r"[^\x00-\x7f]")
_EXCEL_NOTE = re.compile(r'"?sep=."?(?=[\r\n])')
_LETTERS = re.compile("[A-Za-z]")
_WORDS = re.compile("[\udcc0-\udcff]{4,}")  # bytes that are letters in cp1252 and in its kin
_BOMS = (  # the longer mark first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an old office document",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"SQLite format": "a database",
}


@dataclass(frozen=True)
class CsvLayout:
    """How a delimited file is written. `columns` are its names, from the header or made up (column_1, ...)."""

    encoding: str
    delimiter: str
    quoting: bool
    header: bool
    columns: tuple[str, ...]


@contextmanager
def long_fields(characters: int) -> Iterator[None]:
    """Python's csv module takes fields of so many characters meanwhile (its own limit is 131,072)."""
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def csv_quoting(quoting: bool) -> Literal[0, 3]:
    """The csv module's constant."""
    return csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE


def check_readable(path: Path) -> None:
    """Raise `DataError` for what is no data file: missing, a folder, empty, an archive, an office document."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        listed = f" Files in it: {', '.join(inside[:8])}." if inside else " It holds no files."
        raise DataError(f"{path} is a folder; a data file was expected.{listed}")
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        where = near or (
            f"Files of that folder: {_listing(path.parent)}."
            if path.parent.is_dir()
            else f"The folder {path.parent} does not exist either."
        )
        raise DataError(f"There is no file {path}. {where}")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); a table with a text in each row was expected.")
    for magic, kind in _OTHER_KINDS.items():
        if head.startswith(magic):
            unpack = "Unpack it, or save" if "archive" in kind else "Save"
            raise DataError(
                f"{path} is {kind}; expected csv, tsv, json, jsonl or parquet. "
                f"{unpack} the table as csv (UTF-8), and give that file."
            )


def _listing(folder: Path, most: int = 8) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") if names else "none"


def find_encoding(path: Path, given: str | None) -> tuple[str, Choice | None]:
    """The encoding, and the choice that was made where the file is not plain UTF-8. Reads the file once."""
    if given is not None:
        try:
            codecs.lookup(given)
        except LookupError:
            raise DataError(
                f"Encoding {given!r} is not known; expected a name such as utf-8, utf-16, cp1252 or latin-1."
            ) from None
        fault = _first_fault(path, given)
        if fault is not None:
            raise DataError(f"{path} is not {given}: line {fault} can't be decoded. Leave the encoding out.")
        return given, None
    with path.open("rb") as file:
        head = file.read(4)
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            if _first_fault(path, encoding) is not None:
                raise DataError(f"{path} begins with the mark of {encoding} but is not valid {encoding}.")
            return encoding, Choice("encoding", encoding, "the file begins with its byte-order mark")
    fault = _first_fault(path, "utf-8")
    if fault is None:
        return "utf-8", None
    return _single_byte(path, fault)


def _single_byte(path: Path, fault: int) -> tuple[str, Choice]:
    """cp1252 where a file that is not UTF-8 can be little else; raises `DataError` where that would be a guess.

    In the languages of cp1252 letters beyond ASCII are few and stand alone; in those of other encodings (Russian in
    cp1251, Japanese in Shift JIS) they make whole words, whose bytes are mostly characters of cp1252 as well.
    """
    _first_fault(path, "latin-1")  # a binary file is told as one
    several, stray, foreign = _characters(path)
    mend = "Save the file as UTF-8."
    if settable("data.encoding"):
        say = setting("data.encoding", "NAME")
        mend = f"Save the file as UTF-8, or say its encoding with {say} (such as cp1251, shift_jis, gb18030)."
    if several >= stray:
        raise DataError(
            f"{path}: line {fault} is not valid utf-8, though {several:,} characters elsewhere are written in it: the "
            f"file is damaged there, or two encodings are mixed. Mend that line. {mend}"
        )
    if foreign or _first_fault(path, "cp1252") is not None:
        raise DataError(
            f"{path} is not valid utf-8 (line {fault}), and no text in cp1252 (Western European) either: its encoding "
            f"can't be told from its bytes. {mend}"
        )
    reason = f"line {fault} is not valid utf-8; every byte of the file is a character of cp1252"
    return "cp1252", Choice("encoding", "cp1252", reason)


def _characters(path: Path) -> tuple[int, int, bool]:
    """Characters of several bytes in UTF-8; bytes that belong to none; whether most of these make whole words."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    several = stray = words = letters = 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            text = decoder.decode(chunk, final=not chunk)
            lost = len(_STRAY.findall(text))
            stray += lost
            several += len(_BEYOND_ASCII.findall(text)) - lost
            words += sum(len(word) for word in _WORDS.findall(text) if len(set(word)) > 2)
            letters += len(_LETTERS.findall(text))
            if not chunk:
                return several, stray, 2 * words > stray or stray > letters


def _first_fault(path: Path, encoding: str) -> int | None:
    """The line number of the first bytes that `encoding` can't decode; raises `DataError` for binary files."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return line + chunk[: error.start].count(b"\n")
            except UnicodeError:  # UTF-16 and UTF-32 without the mark that they begin with
                return line
            if "\0" in text:
                at = line + text[: text.index("\0")].count("\n")
                raise DataError(
                    f"{path} is a binary file, or damaged: line {at} holds a zero byte. "
                    "Expected text: csv, tsv, json or jsonl (if it is UTF-16 without a mark, give its encoding)."
                )
            if not chunk:
                return None
            line += text.count("\n")


def find_layout(
    path: Path, encoding: str, delimiter: str | None, header: bool | None, quoting: bool | None
) -> tuple[CsvLayout, list[Choice]]:
    """Delimiter, quoting, header and column names; what is given is checked, the rest inferred from the top."""
    text, whole = _sample(path, encoding)
    if not text.strip():
        raise DataError(
            f"{path} holds nothing but blank lines; a table with a text in each row was expected."
        )
    note = _EXCEL_NOTE.match(text)
    if note is not None:
        raise DataError(
            f"{path} begins with a note to Excel ({note[0]!r}), which is no row. Remove that line; the "
            "delimiter is found without it."
        )
    choices: list[Choice] = []
    quotes = True if quoting is None else quoting
    if delimiter is None:
        delimiter, reason = _find_delimiter(path, text, whole, quotes)
        choices.append(Choice("delimiter", DELIMITERS[delimiter], reason))
    else:
        _check_delimiter(path, text, whole, quotes, delimiter)
    rows = _rows(text, whole, delimiter, quotes)
    if quoting is None and any('"' in cell for row in rows for cell in row):
        choices.append(
            Choice(
                "quoting",
                "standard",
                'a field may stand in double quotes, "" is one'
                + (f"; turn off with {setting('data.quoting', 'no')}" if settable("data.quoting") else ""),
            )
        )
    if header is None:
        header, reason = _find_header(rows)
        choices.append(Choice("header", "yes" if header else "no", reason))
    if header and len(rows) == 1 and whole:
        raise DataError(f"{path} has a header line ({', '.join(rows[0][:6])}) and no rows below it.")
    return CsvLayout(encoding, delimiter, quotes, header, _names(path, rows[0], header)), choices


def _sample(path: Path, encoding: str) -> tuple[str, bool]:
    """The first characters, and whether they are the whole file."""
    with path.open(encoding=encoding, newline="") as file:
        text = file.read(SAMPLE_BYTES)
        return text, not file.read(1)


def _rows(text: str, whole: bool, delimiter: str, quoting: bool) -> list[list[str]]:
    """Rows of the sample that are complete."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv_quoting(quoting))
    with long_fields(SAMPLE_BYTES + 1):
        rows = [row for row in islice(reader, 2000) if row]
    return rows if whole or len(rows) == 1 else rows[:-1]


def _consistency(rows: list[list[str]]) -> tuple[int, float]:
    """The commonest number of fields, and the share of rows that have it."""
    counts = Counter(len(row) for row in rows)
    fields, n = counts.most_common(1)[0]
    return fields, n / len(rows)


def _find_delimiter(path: Path, text: str, whole: bool, quoting: bool) -> tuple[str, str]:
    found: list[tuple[float, int, str]] = []
    preferred = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    for delimiter in DELIMITERS:
        fields, share = _consistency(_rows(text, whole, delimiter, quoting))
        if fields >= 2 and share >= 0.5:
            found.append((share, fields if delimiter != preferred else 10**6, delimiter))
    if not found:
        return preferred, "no delimiter splits the rows; the file is read as one column"
    share, _, delimiter = max(found)
    fields, _ = _consistency(_rows(text, whole, delimiter, quoting))
    which = "every row" if share == 1 else f"{share:.0%} of the rows"
    return delimiter, f"it gives {fields} fields in {which} of the sample"


def _check_delimiter(path: Path, text: str, whole: bool, quoting: bool, delimiter: str) -> None:
    fields, _ = _consistency(_rows(text, whole, delimiter, quoting))
    if fields >= 2 or delimiter not in DELIMITERS:
        return
    best, reason = _find_delimiter(path, text, whole, quoting)
    if best != delimiter and reason.startswith("it gives"):
        raise DataError(
            f"{path}: with the delimiter {delimiter!r} every row is a single field. "
            f"Give {best!r} ({DELIMITERS[best]}) instead: {reason}."
        )


def _find_header(rows: list[list[str]]) -> tuple[bool, str]:
    first, rest = [cell.strip() for cell in rows[0]], rows[1:]
    again = [
        any(place < len(row) and row[place].strip() == cell for row in rest)
        for place, cell in enumerate(first)
    ]
    known = [cell for cell in first if cell.lower() in USUAL_NAMES]
    if len(known) > 1 or (known and not again[first.index(known[0])]):
        return True, f"the first line holds the name {known[0]!r}"
    if len(first) == 1:
        return False, "the file has one column and its first line is no usual column name"
    for place, cell in enumerate(first):
        if not cell and place > 0:  # a table written with its index has an empty first name
            return False, "a cell of the first line is empty"
        if _is_number(cell):
            return False, f"the first line holds the number {cell}"
        if again[place]:
            return False, f"{cell[:40]!r} of the first line stands in a later row as well"
    if len(set(first)) < len(first):
        return False, "the first line says the same twice"
    if long := next((cell for cell in first if len(cell) > 64 or len(cell.split()) > 6), None):
        return False, f"{long[:40]!r}... in the first line is too long for a name"
    return True, "the first line reads as names: short, all different, in no other row"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _names(path: Path, first: list[str], header: bool) -> tuple[str, ...]:
    if not header:
        return tuple(f"column_{place}" for place in range(1, len(first) + 1))
    names = [cell.strip() or f"column_{place}" for place, cell in enumerate(first, start=1)]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]!r}; rename one in the header line.")
    return tuple(names)
