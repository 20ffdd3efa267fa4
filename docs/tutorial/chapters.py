"""Runs the tutorial's chapters: every python block in order, all of a chapter in one namespace.

A `text` block right after a python block is what that block prints; `run` fails where it prints something
else. The figures and the tests use this, so that text, code and pictures can't drift apart. It knows no
chapter.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def chapters() -> list[Path]:
    """The chapters in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]-*.md"))


def run(chapter: Path) -> dict[str, Any]:
    """Run a chapter's blocks; returns the namespace that they leave."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))  # the chapters import digits.py
    text = chapter.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": chapter.stem}
    printed: str | None = None
    for block in _BLOCK.finditer(text):
        kind, content = block.groups()
        line = text.count("\n", 0, block.start()) + 1
        if kind == "python":
            if printed:
                raise AssertionError(
                    f"{chapter.name}:{line}: the block before prints {printed!r} and no text block says so"
                )
            code = compile("\n" * line + content, str(chapter), "exec")  # errors name the chapter's own lines
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed = out.getvalue()
        elif printed != content:
            raise AssertionError(
                f"{chapter.name}:{line}: the block before prints {printed!r}, the text says {content!r}"
            )
        else:
            printed = None
    if printed:
        raise AssertionError(f"{chapter.name}: the last block prints {printed!r} and no text block says so")
    return namespace
