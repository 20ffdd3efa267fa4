"""Let freed memory be used again without a detour through the operating system, and let go of what is not needed.

glibc gives blocks of a few megabytes back to the system as soon as they are free and asks for them anew; each page is
then cleared again when it is first touched. A training step frees and asks for the same few hundred blocks over and
over, and that clearing took a fifth of it (docs/experiments.md). With higher thresholds the blocks stay in the process.

A base's weights are mapped from their file. Once a copy of them is laid out for the products, nobody reads the mapped
pages: they are let go, the system's cache of the file keeps them, and who reads them after all has them again.

This file knows the C library and the system's memory, and nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

__all__ = ["keep_freed_memory", "let_go_of_file_pages", "memory_bytes"]

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


_DONTNEED = 4  # madvise(2)
_PAGEMAP = Path("/proc/self/pagemap")  # a word a page, see "pagemap" in the kernel's documentation
_OF_A_FILE, _SWAPPED, _PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))


def let_go_of_file_pages(address: int, length: int) -> bool:
    """Give whole pages of a mapped file back to the system, which reads them anew where they are asked for again.

    Nothing is lost: a page that the process has written to, or that is of no file, would be, and then none is given.

    Args:
        address: of the first byte.
        length: in bytes; pages that lie there in part stay.

    Returns:
        Whether it was done; systems other than Linux have no way to ask.
    """
    first, end = -(-address // mmap.PAGESIZE), (address + length) // mmap.PAGESIZE
    if end <= first or not sys.platform.startswith("linux"):
        return False
    try:
        with _PAGEMAP.open("rb", buffering=0) as words:
            words.seek(8 * first)
            pages = np.frombuffer(words.read(8 * (end - first)), np.uint64)
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return False
    held = pages & (_PRESENT | _SWAPPED) != 0
    if len(pages) != end - first or not (pages[held] & _OF_A_FILE).all():
        return False
    start, size = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t((end - first) * mmap.PAGESIZE)
    return madvise(start, size, ctypes.c_int(_DONTNEED)) == 0


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
