"""The machine that measures: what it is, and how fast it multiplies matrices of a model's shapes."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Machine", "describe", "gemm_rate", "peak_bytes"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
_LAYERS = 6  # as many different weights in turn, as a model has them


@dataclass(frozen=True)
class Machine:
    """A machine in words.

    Attributes:
        cpu: its name.
        flags: those of its instructions that matter for matrix products.
        cores: that this process may use.
        threads: that torch uses.
        memory_bytes: of the machine.
        versions: of torch, transformers, peft, Python.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    threads: int
    memory_bytes: int
    versions: dict[str, str]


def describe() -> Machine:
    """This machine."""
    import peft
    import transformers

    facts = _cpu_facts()
    flags = facts.get("flags", facts.get("Features", "")).split()
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }
    return Machine(
        cpu=facts.get("model name", platform.processor() or platform.machine()),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        versions=versions,
    )


def _cpu_facts() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def peak_bytes() -> int:
    """The most memory that this process ever had.

    Linux's VmHWM where there is one: `ru_maxrss` also counts what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gemm_rate(
    shapes: Sequence[tuple[int, int]], tokens: int, dtype: torch.dtype, *, budget_s: float = 2.0
) -> float:
    """GFLOP/s of a model's products: the best run of each shape, in the layout that is fastest for it.

    Args:
        shapes: (inputs, outputs) of the layers.
        tokens: rows of the input.
        dtype: of input and weights.
        budget_s: seconds for all of it.
    """
    flops = seconds = 0.0
    with torch.inference_mode():
        for inputs, outputs in shapes:
            runs = _layouts(inputs, outputs, tokens, dtype)
            best = min(_fastest(run, budget_s / len(shapes) / len(runs)) for run in runs)
            flops += 2.0 * tokens * inputs * outputs * _LAYERS
            seconds += best
    return flops / seconds / 1e9


def _layouts(inputs: int, outputs: int, tokens: int, dtype: torch.dtype) -> list[Callable[[], object]]:
    x = torch.randn(tokens, inputs).to(dtype)
    rows = [torch.randn(outputs, inputs).mul_(0.02).to(dtype) for _ in range(_LAYERS)]
    columns = [w.t().contiguous() for w in rows]
    found: list[Callable[[], object]] = [
        lambda: [torch.mm(x, w) for w in columns],
        lambda: [torch.mm(x, w.t()) for w in rows],
    ]
    packed = _packed(rows, tokens)
    if packed:
        pointwise = torch.ops.mkldnn._linear_pointwise
        found.append(lambda: [pointwise(x, w, None, "none", [], "") for w in packed])
    return found


def _packed(rows: Sequence[Tensor], tokens: int) -> list[Tensor]:
    """The weights in oneDNN's own layout; empty where this build of torch has none."""
    try:
        return [torch.ops.mkldnn._reorder_linear_weight(w, tokens) for w in rows]
    except (RuntimeError, AttributeError, NotImplementedError):
        return []


def _fastest(run: Callable[[], object], budget_s: float) -> float:
    run()  # the first call compiles the kernel
    best, stop = float("inf"), time.perf_counter() + budget_s
    while True:
        began = time.perf_counter()
        run()
        ended = time.perf_counter()
        best = min(best, ended - began)
        if ended >= stop:
            return best
