"""The keys that docs/json.md documents."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json.md"


def documented(heading: str) -> set[str]:
    """The first column of the table under a heading: "`key`" -> key, nested keys left out."""
    page = PAGE.read_text(encoding="utf-8")
    section = re.split(r"^## ", page, flags=re.M)
    (found,) = [part for part in section if part.splitlines()[0].strip("`") == heading]
    keys = re.findall(r"^\| `([^`]+)`", found, flags=re.M)
    assert keys, heading
    return {key for key in keys if "." not in key}
