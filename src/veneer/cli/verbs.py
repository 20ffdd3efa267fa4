"""`veneer`: the verbs together, and what becomes of their errors.

An error of the tree in `veneer.errors` is one paragraph on standard error, and its own exit code; with --json it is
one object on standard output as well. --debug shows the trace of any. This file knows errors and exit codes, and not
what a verb does.
"""

from __future__ import annotations

import contextlib
import inspect as inspect_module
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import veneer
from veneer.cli import (
    chat,
    combine,
    evaluate,
    export,
    extract,
    generate,
    inspect,
    merge,
    predict,
    preview,
    reproduce,
    train,
)
from veneer.cli.console import print_error, print_json
from veneer.cli.interrupts import never_swallowed
from veneer.cli.naming import InFlags
from veneer.cli.settings import SETTINGS
from veneer.cli.writing import SAMPLING
from veneer.errors import VeneerError
from veneer.naming import speaking

__all__ = ["app", "run"]

INTERRUPTED, BROKEN_PIPE = 130, 141
_UsageError = typer.BadParameter.__mro__[1]  # click's own, whichever click typer brings

_EXAMPLES = """\
[dim]Start with the example data, then with a table of your own:[/]
$ veneer train example
$ veneer predict adapters/example "my parcel is late"
$ veneer preview messages.csv
$ veneer train messages.csv
"""

app = typer.Typer(
    name="veneer",
    help="LoRA fine-tuning that is exact, fast on small machines, and never silently wrong.",
    epilog=_EXAMPLES,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _unfolded(text: str) -> str:
    """Each paragraph on one line, for typer keeps the line breaks of all but the first."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


_PARAMETERS: dict[str, tuple[str, ...]] = {}
"""The options of each verb, by their names in Python."""
_WORDS: dict[str, tuple[str, ...]] = {}
"""What it takes without a flag."""
for verb in (
    train,
    predict,
    generate,
    chat,
    evaluate,
    inspect,
    preview,
    merge,
    export,
    combine,
    extract,
    reproduce,
):
    command = getattr(verb, verb.__name__.rpartition(".")[2])
    of_verb = inspect_module.signature(command).parameters.values()
    _PARAMETERS[command.__name__] = tuple(p.name for p in of_verb if p.kind is p.KEYWORD_ONLY)
    _WORDS[command.__name__] = tuple(p.name for p in of_verb if p.kind is not p.KEYWORD_ONLY)
    app.command(help=_unfolded(command.__doc__), epilog=verb.EXAMPLES)(command)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"veneer {veneer.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code, as `veneer.cli.main` says."""
    given = list(arguments) or ["--help"]
    _wait_briefly()
    options = given[: given.index("--")] if "--" in given else given
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a stream of a test or of an embedding program
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdin.reconfigure(errors="strict")  # type: ignore[union-attr]  # bytes that are no text are said to be so
    try:
        with speaking(_speaker(options)), never_swallowed():
            code = app(given, prog_name="veneer", standalone_mode=False)
        if code == INTERRUPTED:  # typer's own answer to Ctrl-C, without a word
            raise KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        return _broken_pipe()
    except SystemExit as ended:  # typer's own answer to a broken pipe
        if isinstance(ended.__context__, BrokenPipeError):
            return _broken_pipe()
        raise
    except KeyboardInterrupt:
        return _told("Interrupted", "interrupted; nothing was half written.", INTERRUPTED, options)
    except Exception as error:
        if "--debug" in options and not isinstance(error, _UsageError):
            import traceback

            traceback.print_exc()
        return _told(type(error).__name__, *_explained(error), options)


def _wait_briefly() -> None:
    """Let threads that wait for each other look again for a millisecond, not ten, before they sleep (libgomp).

    A thread that looks and looks has the core that the one it waits for needs, where another program runs as well:
    a step then takes thirty times as long. It is read when PyTorch is loaded; who set it otherwise is left alone.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def _speaker(options: Sequence[str]) -> InFlags:
    """Who calls settings by the flags of the verb that is run."""
    verb = next((name for name in options if name in _PARAMETERS), "")
    flags = (*SETTINGS, *SAMPLING, *combine.FLAGS)
    return InFlags(flags, _PARAMETERS.get(verb, ()), options, _WORDS.get(verb, ()))


def _explained(error: Exception) -> tuple[str, int]:
    """An error as a paragraph and an exit code."""
    if isinstance(error, VeneerError):
        return str(error), error.exit_code
    if isinstance(error, _UsageError):
        return _usage(error), 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    return (
        f"{said}. This is a fault of Veneer's, not yours. --debug shows where it happened; please report it with the "
        "command that you gave.",
        1,
    )


def _usage(error: Any) -> str:
    path = error.ctx.command_path if error.ctx is not None else "veneer"
    said = error.format_message().replace("Value error, ", "").removeprefix("Invalid value: ")
    return f"{said if said.endswith(('.', '?', '!')) else f'{said}.'} See: {path} --help"


def _told(kind: str, message: str, code: int, options: Sequence[str]) -> int:
    """Print an error where people and programs look for it."""
    try:
        print_error(message)
        if "--json" in options:
            print_json({"error": {"type": kind, "message": message}})
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    return code


def _broken_pipe() -> int:
    """Whoever read our output has stopped: end quietly, also when Python flushes at its exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
