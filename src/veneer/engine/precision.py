"""In which dtype the frozen base computes: fp32, or bf16 where this machine multiplies faster in it.

LoRA weights, the head and the optimiser are fp32 in any case. bf16 is not exact; the run says which was taken and why.
int8, for bases that don't fit, holds the weights of the blocks in int8 and computes in one of the two; only who asks
for it gets it.
This file knows torch and no model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Precision", "PrecisionName", "choose_precision", "gemm_rate"]

PrecisionName = Literal["auto", "fp32", "bf16", "int8", "int8-fp32", "int8-bf16"]
"""What can be asked for. "int8" computes in the faster of the two, the long names say which."""

# bf16 has to be this much faster before it is worth its rounding.
_WORTH = 1.3


@dataclass(frozen=True)
class Precision:
    """The compute dtype of the frozen base, and why.

    Attributes:
        name: "fp32", "bf16", or "int8".
        reason: in words for the user.
        gflops: measured GEMM rate by dtype name, GFLOP/s; empty where nothing was measured.
        compute: what int8 computes in.
    """

    name: Literal["fp32", "bf16", "int8"]
    reason: str
    gflops: dict[str, float]
    compute: Literal["fp32", "bf16"] = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """torch's dtype of what is computed in."""
        return torch.bfloat16 if "bf16" in (self.name, self.compute) else torch.float32

    @property
    def setting(self) -> PrecisionName:
        """What to ask for to get the same without a measurement."""
        if self.name != "int8":
            return self.name
        return "int8-bf16" if self.compute == "bf16" else "int8-fp32"


def choose_precision(wanted: PrecisionName, device: torch.device, *, budget_s: float = 0.05) -> Precision:
    """The precision for `device`: as asked, or the faster one by a measurement of about `budget_s` seconds."""
    if wanted == "int8":
        found = choose_precision("auto", device, budget_s=budget_s)
        compute: Literal["fp32", "bf16"] = "bf16" if found.name == "bf16" else "fp32"
        return Precision("int8", f"asked for; computed in {compute}: {found.reason}", found.gflops, compute)
    if wanted == "int8-bf16":
        return Precision("int8", "asked for; computed in bf16", {}, "bf16")
    if wanted == "int8-fp32":
        return Precision("int8", "asked for; computed in fp32", {}, "fp32")
    if wanted != "auto":
        return Precision(wanted, "asked for", {})
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return Precision("bf16", "this GPU has bf16 matrix units", {})
        return Precision("fp32", "this GPU has no bf16", {})
    if device.type != "cpu":
        return Precision("fp32", f"bf16 is not measured on {device.type}", {})
    rates = _measured(budget_s)
    ratio = rates["bf16"] / rates["fp32"]
    figures = f"{rates['bf16']:.0f} against {rates['fp32']:.0f} GFLOP/s on one core"
    if ratio >= _WORTH:
        return Precision("bf16", f"bf16 multiplies {ratio:.1f} x faster here ({figures})", rates)
    return Precision("fp32", f"bf16 is not faster here ({figures})", rates)


def _measured(budget_s: float) -> dict[str, float]:
    """The best rate of each dtype on one core, GFLOP/s, measured in turns.

    Another program can only slow a product down, so the best of several short turns is what the machine can do. One
    core, because threads that wait for each other are slowed down by anything else that runs. A verdict against bf16
    is tried again before it is believed.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = dict.fromkeys(dtypes, 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(4):
            for name, dtype in dtypes.items():
                rates[name] = max(rates[name], gemm_rate(dtype, m=128, budget_s=budget_s / 2))
            if rates["bf16"] >= _WORTH * rates["fp32"]:
                break
    finally:
        torch.set_num_threads(threads)
    return rates


def gemm_rate(
    dtype: torch.dtype, *, m: int = 512, k: int = 768, n: int = 768, budget_s: float = 0.025
) -> float:
    """GFLOP/s of an (m, k) x (k, n) product on the CPU: the best of the runs that fit in `budget_s` seconds."""
    with torch.no_grad():
        x, w = torch.ones(m, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
        torch.nn.functional.linear(x, w)  # the first call compiles the kernel
        best, stop = float("inf"), time.perf_counter() + budget_s
        while True:
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            end = time.perf_counter()
            best = min(best, end - start)
            if end >= stop:
                return 2e-9 * m * k * n / best
