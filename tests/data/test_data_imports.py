"""The room stays light: nothing heavy is loaded before a file is read."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "pyarrow", "pandas", "datasets", "transformers"}


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = f"import sys, veneer.data; print(*sorted({HEAVY} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
