"""Let freed memory be used again without a detour through the operating system.

glibc gives blocks of a few megabytes back to the system as soon as they are free and asks for them anew; each page is
then cleared again when it is first touched. A training step frees and asks for the same few hundred blocks over and
over, and that clearing took a fifth of it (docs/experiments.md). With higher thresholds the blocks stay in the process.

This file knows the C library and the system's memory, and nothing else.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path

__all__ = ["keep_freed_memory", "memory_bytes"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_MOST = 64 * 2**20  # larger blocks (weights, vocabularies of logits) go back to the system as before


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks of up to 64 MiB in the process.

    Returns:
        Whether it was done; other C libraries do not know how.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MOST) and mallopt(_TRIM_THRESHOLD, 8 * _MOST))


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Bytes of memory that this machine has, or its container may take; 2^63 where the system does not say."""
    found = 2**63
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in map(Path, _LIMITS):
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if text.isdigit():
            found = min(found, int(text))
    return found
