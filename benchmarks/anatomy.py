"""How a step divides: products, attention, elementwise passes, optimiser, and what is none of them.

    python -m benchmarks.anatomy --only spam-gpt2,minilm-sst2 --steps 10 --shapes

Each workload's own loop runs twice over as many steps: by the clock alone, with five timers a step (reading a batch,
forward, backward, optimiser), and under PyTorch's profiler, which says what each operator took. What operators do not
account for in the steps by the clock is Python, autograd's bookkeeping and waiting; since the profiler makes operators
a little slower, that figure is rather too small. The cost of an operator's call is in the operator.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.side import Measured, SideSpec

__all__ = ["Anatomy", "Operator", "anatomy", "kind_of", "main"]

ROOT = Path(__file__).resolve().parents[1]
FROZEN, LORA, ATTENTION = "frozen products", "LoRA's products, head", "attention"
NORMS, ACTIVATION, OPTIMISER = "norms", "activation", "optimiser"
COPIES, OTHER, OUTSIDE = "copies, lookups, sums", "other operators", "Python, autograd, waiting"
KINDS = (FROZEN, LORA, ATTENTION, NORMS, ACTIVATION, COPIES, OPTIMISER, OTHER, OUTSIDE)
_NARROW = 128  # a product with a side no wider is LoRA's or the head's
_KERNELS = {
    **dict.fromkeys(("frozen_forward", "frozen_backward"), FROZEN),  # with the adapters in them
    **dict.fromkeys(("lora_forward", "lora_backward"), LORA),
    **dict.fromkeys(("attend", "attend_gradient", "read", "read_gradient"), ATTENTION),
    **dict.fromkeys(("norm", "norm_gradient"), NORMS),
    **dict.fromkeys(("value", "gradient"), ACTIVATION),
}
"""Methods of `veneer.engine.native.Kernels`, which the profiler sees as operators of this name."""

_TIMED = {
    "reading a batch": ("veneer.training.loop.packed_rows", "veneer.engine.prefix.PrefixStore.below"),
    "forward": ("veneer.tasks.adapted.Adapted.outputs", "veneer.tasks.adapted.Adapted.outputs_of"),
    "backward": ("torch.Tensor.backward",),
    "optimiser": ("torch.optim.AdamW.step", "torch.optim.AdamW.zero_grad"),
}


@dataclass(frozen=True)
class Operator:
    """What one operator took on one set of shapes, per step.

    Attributes:
        name: PyTorch's.
        shapes: of its inputs.
        calls: a step.
        ms: a step, without the operators inside of it.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    calls: float
    ms: float

    @property
    def gflops(self) -> float | None:
        """GFLOP/s of a frozen product in oneDNN's blocks; None of all else."""
        if not self.name.startswith("mkldnn::_linear"):
            return None
        rows, weight = (
            self.shapes[0],
            next(s for s in self.shapes[1:] if len(s) == 2 and s[1] == self.shapes[0][1]),
        )
        return 2e-6 * rows[0] * rows[1] * weight[0] * self.calls / self.ms


@dataclass
class Anatomy:
    """A workload's step.

    Attributes:
        workload: its name.
        step_ms: the mean step by the clock; `median_ms`: the median.
        phases: milliseconds of each timed part of a step, by the clock.
        kinds: milliseconds by kind of operator, a step; the last kind is what is left of `step_ms`.
        operators: the same one by one, the largest first.
    """

    workload: str
    step_ms: float
    median_ms: float
    phases: Mapping[str, float]
    kinds: Mapping[str, float]
    operators: Sequence[Operator] = field(repr=False)

    @property
    def calls(self) -> float:
        """Operators a step."""
        return sum(operator.calls for operator in self.operators)

    def table(self, *, shapes: bool) -> str:
        """For people; with `shapes` the operators one by one as well."""
        lines = [
            f"{self.workload}: a step {self.step_ms:.1f} ms (median {self.median_ms:.1f}), {self.calls:,.0f} operators",
            "  " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.phases.items()),
            *(
                f"  {name:<28}{ms:9.2f} ms {100 * ms / self.step_ms:6.1f} %"
                for name, ms in self.kinds.items()
            ),
        ]
        for op in self.operators[:40] if shapes else ():
            rate = "" if op.gflops is None else f"  {op.gflops:,.0f} GFLOP/s"
            dims = " ".join("x".join(map(str, s)) for s in op.shapes if s)
            lines.append(f"    {op.ms:8.3f} ms {op.calls:7.1f} x  {op.name}  {dims}{rate}")
        return "\n".join(lines)


def kind_of(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """Which of `KINDS` an operator with inputs of these shapes belongs to."""
    space, _, short = name.partition("::")
    if space == "veneer":
        return _KERNELS[short]
    if short.startswith(("_linear_pointwise", "_weight_int8")):
        return FROZEN
    if short in ("mm", "addmm", "addmm_", "linear", "mkldnn_linear"):
        sides = [side for shape in shapes if len(shape) == 2 for side in shape]
        return FROZEN if sides and min(sides) > _NARROW else LORA
    if short in ("bmm", "baddbmm", "_softmax", "softmax", "_softmax_backward_data") or "attention" in short:
        return ATTENTION
    if "layer_norm" in short:
        return NORMS
    if "gelu" in short or "silu" in short:
        return ACTIVATION
    if "adam" in short or "foreach" in short:
        return OPTIMISER
    copying = (
        "copy_",
        "cat",
        "index",
        "_to_copy",
        "add",
        "mul",
        "fill",
        "zero",
        "sum",
        "pad",
        "empty",
        "embedding",
    )
    return COPIES if short.startswith(copying) or "::" not in name else OTHER


class _Script:
    """Commands for one side: warm up, steps by the clock, steps under the profiler (see `side.Commands`)."""

    def __init__(self, warm: int, steps: int) -> None:
        ends = [0, warm, warm + steps, warm + 2 * steps]
        self._ranges = [range(a, b) for a, b in itertools.pairwise(ends)]
        self._profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.timers: dict[str, float] = dict.fromkeys(_TIMED, 0.0)
        self.phases: dict[str, float] = {}
        self.measured: list[Measured] = []
        self.done = 0

    def ready(self, *_: Any, **__: Any) -> None:
        """Nobody has to be told."""

    def next(self) -> range | None:
        """What to do next; None: nothing."""
        if self.done == len(self._ranges):
            return None
        self.timers.update(dict.fromkeys(_TIMED, 0.0))
        if self.done == 2:
            self._profiler.__enter__()
        return self._ranges[self.done]

    def answer(self, measured: Measured) -> None:
        """What the last steps took."""
        if self.done == 1:
            self.phases = dict(self.timers)
        if self.done == 2:
            self._profiler.__exit__(None, None, None)
        self.measured.append(measured)
        self.done += 1

    def operators(self) -> list[Operator]:
        """Of the steps under the profiler; the graph's nodes, whose own time is Python's, are none."""
        steps = len(self.measured[2].seconds)
        found = [
            Operator(
                event.key,
                tuple(tuple(shape) for shape in event.input_shapes if all(isinstance(n, int) for n in shape)),
                event.count / steps,
                event.self_cpu_time_total / 1e3 / steps,
            )
            for event in self._profiler.key_averages(group_by_input_shape=True)
            if "::" in event.key and not event.key.startswith("autograd::")
        ]
        return sorted(found, key=lambda operator: -operator.ms)


@contextmanager
def _timed(timers: dict[str, float]) -> Iterator[None]:
    """Inside it the functions of `_TIMED` add their seconds to `timers`."""
    from importlib import import_module

    with ExitStack() as stack:
        for part, places in _TIMED.items():
            for place in places:
                owner_name, _, name = place.rpartition(".")
                try:
                    owner: Any = import_module(owner_name)
                except ModuleNotFoundError:
                    module, _, cls = owner_name.rpartition(".")
                    owner = getattr(import_module(module), cls)
                stack.enter_context(
                    patch.object(owner, name, _with_timer(getattr(owner, name), timers, part))
                )
        yield


@contextmanager
def _named_kernels() -> Iterator[None]:
    """Inside it the compiled kernels have names for the profiler."""
    from veneer.engine.native import Kernels

    def named(method: Any, name: str) -> Any:
        def call(*arguments: Any, **by_name: Any) -> Any:
            with record_function(f"veneer::{name}"):
                return method(*arguments, **by_name)

        return call

    with ExitStack() as stack:
        for name in _KERNELS:
            stack.enter_context(patch.object(Kernels, name, named(getattr(Kernels, name), name)))
        yield


def _with_timer(function: Any, timers: dict[str, float], part: str) -> Any:
    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            timers[part] += time.perf_counter() - began

    return timed


def anatomy(spec: SideSpec, *, warm: int, steps: int) -> Anatomy:
    """Run one workload of ours in this process, and take it apart."""
    from benchmarks.ours import Ours

    script = _Script(warm, steps)
    with _timed(script.timers), _named_kernels():
        Ours(spec).serve(script)  # type: ignore[arg-type]
    seconds = script.measured[1].seconds
    operators = script.operators()
    kinds = dict.fromkeys(KINDS, 0.0)
    for operator in operators:
        kinds[kind_of(operator.name, operator.shapes)] += operator.ms
    step_ms = 1e3 * statistics.fmean(seconds)
    kinds[OUTSIDE] = max(0.0, step_ms - sum(kinds.values()))
    phases = {part: 1e3 * s / len(seconds) for part, s in script.phases.items()}
    return Anatomy(spec.workload, step_ms, 1e3 * statistics.median(seconds), phases, kinds, operators)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the anatomy of the workloads that were named."""
    options = _parser().parse_args(arguments)
    sys.path.insert(0, str(ROOT / "src"))
    import torch

    from benchmarks import materials
    from benchmarks.workloads import WORKLOADS, default_names
    from veneer.engine import choose_precision

    names = options.only.split(",") if options.only else default_names()
    precision = options.precision
    if precision == "auto":
        precision = choose_precision("auto", torch.device("cpu")).name
    with tempfile.TemporaryDirectory(prefix="veneer-anatomy-") as folder:
        for name in names:
            workload = WORKLOADS[name]
            limit = options.texts or (4000 if workload.epochs else None)
            try:
                made = materials.make(workload, Path(folder), options.data, limit=limit)
            except materials.MissingMaterialError as error:
                print(f"{name}: {error}")
                continue
            steps = options.steps if workload.train else math.ceil(options.steps / 10)
            spec = SideSpec("ours", name, made.to_json(), precision, tuple(options.without))
            print(anatomy(spec, warm=min(options.warm, steps * 4), steps=steps).table(shapes=options.shapes))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anatomy", description=__doc__)
    parser.add_argument("--only", default="", help="workloads, with commas between them")
    parser.add_argument("--steps", type=int, default=10, help="by the clock, and again under the profiler")
    parser.add_argument("--warm", type=int, default=20, help="steps before them")
    parser.add_argument("--shapes", action="store_true", help="the operators one by one")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--without", action="append", default=[], help="a technique to switch off")
    parser.add_argument(
        "--texts", type=int, help="only so many texts (4,000 where the prefix has to be made)"
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of data sets"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
