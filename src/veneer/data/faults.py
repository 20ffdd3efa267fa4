"""Rows that can't be used, refused with their numbers and the mend; it knows no format."""

from __future__ import annotations

from collections.abc import Sequence

from veneer.data.choices import counted
from veneer.errors import DataError
from veneer.naming import settable, setting

__all__ = ["refuse_rows"]

_NAMED = 5  # rows that a message lists


def refuse_rows(where: str, rows: Sequence[int], what: str, option: str) -> None:
    """Raise `DataError` if any of these rows, counted from 1, lack something.

    Args:
        where: the file, in the message.
        rows: their numbers.
        what: what each lacks, such as "an answer".
        option: the setting that leaves them out with "drop".
    """
    if not rows:
        return
    first = ", ".join(f"{row:,}" for row in rows[:_NAMED]) + (", ..." if len(rows) > _NAMED else "")
    mend = f"leave them out with {setting(option, 'drop')}" if settable(option) else "remove them"
    raise DataError(
        f"{where}: {counted(len(rows), 'row')} without {what} (row {first}, counted from 1 without the header). "
        f"Fill them in, or {mend}."
    )
