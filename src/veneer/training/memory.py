"""How much memory this process took and may take: for estimates. Knows the system, no run."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from veneer.engine.allocation import memory_bytes

__all__ = ["available_bytes", "peak_bytes", "used_bytes"]


def used_bytes(device: torch.device) -> int:
    """Bytes that are taken now: of the GPU by torch, or of the machine's memory by this process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return _status("VmRSS") or peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes that were taken since the process began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(device: torch.device) -> int:
    """Bytes that this process can have in all: what it has and what is free, under the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + used_bytes(device)
    free = _of_file(Path("/proc/meminfo"), "MemAvailable")
    return memory_bytes() if free is None else min(free + used_bytes(device), memory_bytes())


def _status(key: str) -> int:
    return _of_file(Path("/proc/self/status"), key) or 0


def _of_file(path: Path, key: str) -> int | None:
    """A figure in kB of one of Linux's files, in bytes; None where there is no such file or line."""
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
