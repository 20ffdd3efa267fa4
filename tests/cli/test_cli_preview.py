"""The preview on a terminal: lines end between tokens."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.text import Text

from veneer.cli.preview import _broken


@pytest.mark.parametrize(
    "tokens", [["ab", "cde", "f", "ghij"] * 6, ["字字字", "b"] * 9, ["x" * 30, "y"], ["a"], []]
)
@pytest.mark.parametrize("width", [8, 11, 100])
def test_lines_are_broken_between_tokens(tokens: list[str], width: int) -> None:
    line, starts = Text(), []
    for token in tokens:
        starts.append(len(line))
        line.append(token)
    parts = [part.plain for part in _broken(line, starts, width)]
    assert "".join(parts) == "".join(tokens)
    begins = {0, *starts}
    at = 0
    for part in parts:
        assert at in begins
        assert cell_len(part) <= width or part in tokens
        at += len(part)
    assert (len(parts) > 1) == (cell_len(line.plain) > width)
