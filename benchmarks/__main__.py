"""`python -m benchmarks`: measure everything, or some of it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
ABLATIONS: dict[str, tuple[str, ...]] = {
    "spam-gpt2": (
        *("packing", "program", "node", "reads", "bf16", "blocks"),
        *("kernels", "activation", "attention", "shapes", "allocation"),
    ),
    "sst2-gpt2": ("prefix", "beginnings", "kernels", "node"),
    "minilm-spam": ("kernels", "joined", "shapes", "allocation"),
    "minilm-sst2": ("packing", "program", "reads", "bf16", "joined", "blocks", "attention", "kernels"),
    "instruction-gpt2": ("packing", "blocks", "reads", "kernels"),
    "predict-minilm": ("packing", "reads", "kernels", "blocks"),
    "predict-gpt2": ("reads", "beginnings", "blocks", "kernels"),
    "tiny-gpt2": ("packing", "program", "reads", "attention"),
}
"""Which techniques are switched off, one at a time, for which workload."""
_AT_ONCE = 4  # sides of an ablation that take turns: as many bases stand in memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write them down. Returns 0, or 1 where nothing could be measured."""
    options = _parser().parse_args(arguments)
    sys.path.insert(0, str(ROOT / "src"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.report import check_page, put_into, tables
    from benchmarks.workloads import default_names

    names = options.only.split(",") if options.only else default_names()
    page = options.page or (
        None if options.quick or options.only or options.steps else ROOT / "docs/performance.md"
    )
    if page is not None:
        try:
            check_page(page)  # before 25 minutes of measuring, not after
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    results = run(names, options)
    print(tables(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    if page is not None and results.workloads:
        put_into(page, results)
        print(f"written into {page}")
    return 0 if results.workloads else 1


def run(names: Sequence[str], options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """Measure the workloads `names`; what can't be measured here is left out, with the reason."""
    from benchmarks import materials
    from benchmarks.harness import FAST, FULL, SideFailedError, measure
    from benchmarks.machine import describe
    from benchmarks.results import Results, WorkloadResult
    from benchmarks.workloads import WORKLOADS, Workload

    effort = FAST if options.quick else FULL
    if options.steps:
        effort = dataclasses.replace(effort, steps=options.steps)
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise SystemExit(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    began, done, ablations = time.monotonic(), list[WorkloadResult](), list[WorkloadResult]()
    left_out: dict[str, str] = {}
    sides = [side for side in options.sides.split(",") if side]
    ready: list[tuple[Workload, materials.Materials]] = []
    with tempfile.TemporaryDirectory(prefix="veneer-bench-") as folder:
        try:
            for name in names:
                workload = WORKLOADS[name]
                try:
                    made = materials.make(workload, Path(folder), options.data, limit=effort.texts)
                    done.append(measure(workload, made, effort, sides=sides, say=_say))
                except (materials.MissingMaterialError, SideFailedError) as error:
                    left_out[name] = str(error)
                else:
                    ready.append((workload, made))
            for workload, made in ready if options.ablation else ():
                off = ABLATIONS.get(workload.name, ())
                enough = effort.ablation_texts if workload.train else effort.ablation_texts // 10
                made = materials.shortened(made, enough) if off else made
                for some in (off[i : i + _AT_ONCE] for i in range(0, len(off), _AT_ONCE)):
                    switched = [(switch,) for switch in some]
                    try:
                        found = measure(workload, made, effort.ablation, off=switched, sides=(), say=_say)
                        ablations.append(found)
                    except SideFailedError as error:
                        left_out[f"{workload.name} without {' or '.join(some)}"] = str(error)
        except KeyboardInterrupt:
            _say("stopped: what was measured is written")
            left_out["what was still to come"] = "stopped by Ctrl-C"
    return Results(
        machine=describe(),
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=time.monotonic() - began,
        quick=bool(options.quick or options.steps),
        workloads=tuple(done),
        ablations=tuple(ablations),
        left_out=left_out,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="workloads, with commas between them")
    parser.add_argument("--sides", default="a,b,c", help="baselines to measure beside ours")
    parser.add_argument("--steps", type=int, help="steps of a round, instead of by time")
    parser.add_argument("--quick", action="store_true", help="a few steps: does everything work?")
    parser.add_argument(
        "--no-ablation", dest="ablation", action="store_false", help="no technique switched off"
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of data sets"
    )
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument(
        "--page", type=Path, help="put the tables into this page (a full run: docs/performance.md)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
