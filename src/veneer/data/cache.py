"""Where downloaded and converted data lies between runs, and how a file gets there whole or not at all.

It knows folders and names, and nothing of what the files hold.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from veneer.errors import ConfigError

__all__ = ["atomic_path", "cache_folder"]


def cache_folder(*parts: str) -> Path:
    """$VENEER_CACHE, else $XDG_CACHE_HOME/veneer, else ~/.cache/veneer; with `parts` below it, created."""
    own, shared = os.environ.get("VENEER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        root = Path(own)
    elif shared:
        root = Path(shared) / "veneer"
    else:
        root = Path.home() / ".cache" / "veneer"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The cache folder {folder} can't be made: {error.strerror}. "
            "Set VENEER_CACHE to a folder that you may write to."
        ) from error
    return folder


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it becomes `target` at the end, or goes away on any error."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
