"""The tutorial runs as it is written: every block of every chapter, and the pictures made from what it computed."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "tutorial"
CHAPTERS = sorted(FOLDER.glob("[0-9][0-9]-*.md"))


def module(name: str) -> ModuleType:
    """A module of the tutorial's folder, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@cache
def namespace(chapter: Path) -> dict[str, Any]:
    return module("chapters").run(chapter)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_as_written(chapter: Path) -> None:
    assert namespace(chapter)


@pytest.mark.parametrize(
    "blocks",
    [
        "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n",
        "```python\nprint(1 + 1)\n```\n",
        "```python\nprint(1)\n```\n```python\npass\n```\n",
        "```python\nassert False\n```\n",
    ],
)
def test_a_chapter_that_says_something_else_fails(tmp_path: Path, blocks: str) -> None:
    chapter = tmp_path / "01-wrong.md"
    chapter.write_text(blocks, encoding="utf-8")
    with pytest.raises(AssertionError):
        module("chapters").run(chapter)


def test_chapters_are_numbered_without_gaps_and_listed() -> None:
    assert [int(path.name[:2]) for path in CHAPTERS] == list(range(1, len(CHAPTERS) + 1))
    listed = re.findall(r"\]\((\d\d-[^)]*\.md)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in CHAPTERS]


def test_figures_are_drawn_from_the_chapters_own_numbers(tmp_path: Path) -> None:
    """Drawing gives the files that are stored, every one is shown somewhere, and each is small."""
    figures = module("figures")
    for stem in figures.FIGURES:
        chapter = next(path for path in CHAPTERS if path.name.startswith(stem[:2]))
        figures.draw(stem, namespace(chapter), tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    shown = {
        found
        for path in CHAPTERS
        for found in re.findall(r"!\[[^\]]+\]\(figures/([^)]+)\)", path.read_text(encoding="utf-8"))
    }
    stored = {path.name: path.stat().st_size for path in (FOLDER / "figures").iterdir()}
    assert drawn == shown == set(stored)
    assert max(stored.values()) < 60_000
