"""A file of plain text as a table of documents.

Where one document ends is said by blank lines, by every line, or by nothing; which of them it is, is inferred and can
be told. This file knows characters, and no token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from veneer.data.choices import Choice
from veneer.data.sniff import check_readable, find_encoding
from veneer.data.tables import Table
from veneer.errors import DataError
from veneer.naming import settable, setting

__all__ = ["Documents", "read_documents"]

Documents = Literal["auto", "blank-lines", "lines", "file"]

_BLANK = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def read_documents(path: str | Path, documents: Documents = "auto", encoding: str | None = None) -> Table:
    """A table with the one column "text", a row a document.

    Args:
        path: a file of text.
        documents: what separates them; "auto": blank lines where there are any, else every line is one.
        encoding: None: inferred.

    Raises:
        DataError: the file can't be read, or holds no text.
    """
    import pyarrow as pa

    path = Path(path)
    check_readable(path)
    name, choice = find_encoding(path, encoding)
    try:
        whole = path.read_text(encoding=name).strip("\n")
    except UnicodeDecodeError as error:
        say = f"Say its encoding with {setting('data.encoding', 'NAME')}."
        mend = say if settable("data.encoding") else "Save it as UTF-8."
        raise DataError(f"{path} is not {name} text ({error.reason}). {mend}") from None
    how = documents
    if how == "auto":
        how = "blank-lines" if _BLANK.search(whole) else "lines"
    found = [whole]
    if how != "file":
        found = _BLANK.split(whole) if how == "blank-lines" else whole.splitlines()
    texts = [text for text in found if text.strip()]
    if not texts:
        raise DataError(f"{path} holds no text.")
    reason = "asked for" if documents != "auto" else _REASONS[how]
    choices = [Choice("documents", f"{len(texts):,}, separated by {_SEPARATORS[how]}", reason)]
    data = pa.table({"text": pa.array(texts, pa.string())})
    return Table(path, data, {"text": "text"}, tuple([choice] if choice else []) + tuple(choices))


_SEPARATORS = {"blank-lines": "blank lines", "lines": "the end of the line", "file": "nothing"}
_REASONS = {"blank-lines": "the file has blank lines", "lines": "the file has no blank line"}
