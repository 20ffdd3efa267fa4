"""How many threads compute: all that PyTorch would take, or fewer where another program has the cores.

Two threads that wait for each other after each small product are slower than one as soon as one of them is put aside.
How many are worth it is measured with products of a small model's shape; what was found is kept with a run, because
the last bits of a result depend on it.

This file knows torch and no model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Threads", "choose_threads", "own_threads"]

_WORTH = 1.25
"""Fewer threads have to be this much faster before they are taken: a quiet machine always gets the same answer."""
_TURNS = 3
_OPERATIONS = 2  # products of one measured piece; each is a place where threads wait for each other


@dataclass(frozen=True)
class Threads:
    """A number of compute threads, and why.

    Attributes:
        count: 1 or more.
        reason: in words for the user.
        rates: measured pieces of work a second, by number of threads; empty where nothing was measured.
    """

    count: int
    reason: str
    rates: dict[int, float]


def choose_threads(wanted: int | Literal["auto"], device: torch.device, *, budget_s: float = 0.3) -> Threads:
    """The number of threads for a run on `device`; nothing is set.

    Args:
        wanted: a number, or "auto": what OMP_NUM_THREADS says, else a measurement of PyTorch's present number against
            its half, a quarter, ... down to 1.
        device: where the run computes; only on a CPU is anything measured.
        budget_s: about so long the measurement takes.
    """
    if wanted != "auto":
        return Threads(wanted, "asked for", {})
    most = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS"):
        return Threads(most, "OMP_NUM_THREADS says so", {})
    if most == 1 or device.type != "cpu":
        return Threads(most, "one core" if most == 1 else f"computed on {device.type}", {})
    rates = _measured(_candidates(most), budget_s)
    count = _chosen(rates)
    if count == most:
        return Threads(count, "no fewer are faster by a measurement", rates)
    times = rates[count] / rates[most]
    return Threads(count, f"{times:.1f} x faster than {most}: another program has the cores", rates)


@contextmanager
def own_threads() -> Iterator[None]:
    """Inside, the number of threads may be set; afterwards it is what it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _candidates(most: int) -> list[int]:
    """`most`, and each half of it down to 1.

    >>> _candidates(6)
    [6, 3, 1]
    """
    found = [most]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _chosen(rates: dict[int, float]) -> int:
    """The most threads, unless the fastest number is clearly faster.

    >>> _chosen({4: 100.0, 2: 110.0, 1: 60.0}), _chosen({4: 20.0, 2: 70.0, 1: 90.0})
    (4, 1)
    """
    most, fastest = max(rates), max(rates, key=lambda count: rates[count])
    return fastest if rates[fastest] > _WORTH * rates[most] else most


def _measured(candidates: list[int], budget_s: float) -> dict[int, float]:
    """Pieces of work a second for each number of threads, in turns; the median turn of each."""
    share = budget_s / (_TURNS * len(candidates))
    turns: dict[int, list[float]] = {count: [] for count in candidates}
    x, w = torch.ones(256, 384), torch.full((384, 384), 0.01)
    with own_threads(), torch.no_grad():
        for _ in range(_TURNS):
            for count in candidates:
                torch.set_num_threads(count)
                _piece(x, w)  # its threads are made, or wake up
                turns[count].append(_rate(x, w, share))
    return {count: sorted(found)[_TURNS // 2] for count, found in turns.items()}


def _rate(x: Tensor, w: Tensor, seconds: float) -> float:
    began, done = time.perf_counter(), 0
    while True:
        _piece(x, w)
        done += 1
        took = time.perf_counter() - began
        if took >= seconds:
            return done / took


def _piece(x: Tensor, w: Tensor) -> Tensor:
    """Some of a small block's work: products, and what stands between them."""
    for _ in range(_OPERATIONS):
        x = torch.nn.functional.gelu(x @ w)
    return x
