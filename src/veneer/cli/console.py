"""Where a verb's words go: the result to standard output, everything else to standard error.

With --json standard output gets exactly one object, whatever a library may print meanwhile. This file knows terminals
and tables of text, and nothing of what they say.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Output", "facts_table", "print_error", "print_json", "table"]


class Output:
    """The two streams of one verb."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.err = _console(sys.stderr)
        self.warned: list[str] = []  # what the library warned of while it worked
        self._stdout = sys.stdout

    @property
    def live(self) -> bool:
        """Whether a person watches: progress may be drawn over itself."""
        return self.err.is_terminal and not self.quiet

    def say(self, text: str, style: str = "") -> None:
        """A line for people, on standard error."""
        if not self.quiet:
            self.err.print(text, style=style or None, soft_wrap=not self.err.is_terminal)

    def warn(self, text: str) -> None:
        """Something to look at, on standard error; --quiet leaves it out."""
        if not self.quiet:
            from rich.text import Text

            self.err.print(Text.assemble(("note: ", "yellow"), text), soft_wrap=not self.err.is_terminal)

    def choices(self, choices: Sequence[Any]) -> None:
        """What was inferred, each with its reason (objects with `what`, `value`, `reason`)."""
        if not self.quiet and choices:
            self.err.print(facts_table([(c.what, f"{c.value}", c.reason) for c in choices]))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While the library works: what it tells is a line for people, and with --json so is what anyone prints."""
        told = _Told(self)
        logger = logging.getLogger("veneer")
        level = logger.level
        logger.addHandler(told)
        logger.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(sys.stderr) if self.json else contextlib.nullcontext():
                yield
        finally:
            logger.removeHandler(told)
            logger.setLevel(level)

    def result(self, value: dict[str, Any], show: Callable[[Console], None]) -> None:
        """The result: as one JSON object, or as `show` prints it."""
        if self.json:
            print_json(value, self._stdout)
        else:
            show(_console(self._stdout))


class _Told(logging.Handler):
    """The library's log as lines on standard error."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        """One line; a warning is kept for the result too."""
        if record.levelno >= logging.WARNING:
            self.output.warn(record.getMessage())
            self.output.warned.append(record.getMessage())
        else:
            self.output.say(record.getMessage(), "dim")


def print_json(value: dict[str, Any], stream: Any = None) -> None:
    """One object on one line of `stream`; None: standard output as it is now."""
    stream = stream or sys.stdout
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    stream.write(json.dumps(value, ensure_ascii=not utf8, allow_nan=False) + "\n")


def print_error(text: str) -> None:
    """One paragraph on standard error, folded where a person reads it and left whole in a file."""
    from rich.text import Text

    console = _console(sys.stderr)
    console.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=not console.is_terminal)


def table(*columns: str, numbers: Sequence[int] = ()) -> Table:
    """A table without lines; the columns in `numbers` are right-aligned."""
    from rich.table import Table

    found = Table(
        box=None, pad_edge=False, show_header=any(columns), header_style="dim", padding=(0, 2, 0, 0)
    )
    for place, name in enumerate(columns):
        found.add_column(name, justify="right" if place in numbers else "left", overflow="fold")
    return found


def facts_table(rows: Sequence[tuple[str, ...]]) -> Table:
    """Names on the left; beside each its value, and perhaps the reason for it, dim."""
    from rich.table import Table
    from rich.text import Text

    found = Table.grid(padding=(0, 2, 0, 0))
    found.add_column(style="dim", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value, *reasons in rows:
        found.add_row(Text(name), Text.assemble(value, *((f" · {reason}", "dim") for reason in reasons)))
    return found


def _console(stream: Any) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, emoji=False, markup=False)
