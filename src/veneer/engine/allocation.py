"""Let freed memory be used again without a detour through the operating system.

glibc gives blocks of a few megabytes back to the system as soon as they are free and asks for them anew; each page is
then cleared again when it is first touched. A training step frees and asks for the same few hundred blocks over and
over, and that clearing took a fifth of it (docs/experiments.md). With higher thresholds the blocks stay in the process.

This file knows the C library and nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

__all__ = ["keep_freed_memory"]

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
