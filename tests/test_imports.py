"""Imports point downward only: no room knows one above it, and serving and training don't know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "veneer"

# Each layer may import those below it. Rooms of one layer don't know each other.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"recipes"},
    {"serving", "training"},
    {"tasks"},
    {"evaluation"},
    {"data"},
    {"adapter"},
    {"engine"},
    {"lora"},
    {"models"},
    {"errors", "files", "naming", "strict"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
GROUND = LAYERS[-1]
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder or file right below veneer/ that `path` belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source: str, path: Path) -> list[tuple[int, str]]:
    """(line, room) of every import of veneer, at the top or inside a function; "" is veneer itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            module = node.module or ""
            names = [f"veneer.{a.name}" for a in node.names] if module == "veneer" else [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "veneer":
                found.append((node.lineno, parts[1] if len(parts) > 1 else ""))
    return found


def faults(source: str, path: Path) -> list[str]:
    """What is wrong with the imports of one file."""
    room, wrong = room_of(path), []
    if room == "__init__":  # the public face may show everything
        return []
    for line, other in imported_rooms(source, path):
        if other == room or other not in RANK:  # `import veneer` and `from veneer import __version__`
            continue
        if room == "lora" and other == "models":
            wrong.append(f"{path}:{line} lora knows no model, but imports veneer.{other}")
        elif RANK[other] < RANK[room] or (RANK[other] == RANK[room] and not {room, other} <= GROUND):
            wrong.append(f"{path}:{line} {room} imports veneer.{other}, which stands above or beside it")
    return wrong


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms <= RANK.keys(), f"rooms without a place: {sorted(rooms - RANK.keys())}"
    assert {"training", "tasks", "evaluation", "data", "adapter", "engine", "lora", "models"} <= rooms
    assert len(FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("models/load.py", "from veneer.tasks.base import Task"),
        ("lora/attach.py", "def f():\n    import veneer.models.load"),
        ("serving/http.py", "from veneer import training"),
        ("training/loop.py", "from veneer.serving.registry import Registry"),
        ("evaluation/report.py", "if True:\n    from veneer.tasks import base"),
        ("errors.py", "from veneer.adapter import Facts"),
    ],
)
def test_a_wrong_direction_is_found(place: str, line: str) -> None:
    assert len(faults(line, ROOT / place)) == 1
