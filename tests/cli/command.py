"""`veneer` inside this process, with its output in hand: what a person sees, without two seconds of imports each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from veneer.cli import main

SRC = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Done:
    """What came of a command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output; anything beside it is an error."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])


def veneer(*arguments: object, stdin: str = "") -> Done:
    """Run a command line here."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
    ):
        code = main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def process(*arguments: object, **more: str) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "veneer", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**more),
    )


def environment(**more: str) -> Mapping[str, str]:
    """This environment with the package's source on the path."""
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", **more}
