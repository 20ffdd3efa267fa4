"""The results as a table for people, put between two marks of a page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.machine import Machine
from benchmarks.results import Figure, Results, SideResult, WorkloadResult
from benchmarks.switches import SWITCHES

__all__ = ["BEGIN", "END", "check_page", "put_into", "tables"]

BEGIN = "<!-- benchmark: begin; written by python -m benchmarks -->"
END = "<!-- benchmark: end -->"
_BEFORE = "ours without "


def check_page(page: Path) -> str:
    """The text of a page that has the two marks.

    Raises:
        ValueError: it can't be read, or does not have the two marks, once each and in order.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{page} can't be read ({error.strerror}); it needs the marks {BEGIN} and {END}"
        ) from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} needs the marks {BEGIN} and {END}, once each and in this order")
    return text


def put_into(page: Path, results: Results) -> None:
    """Replace what stands between the marks of `page`; see `check_page`."""
    text = check_page(page)
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n\n{tables(results)}\n{END}{tail}", encoding="utf-8")


def tables(results: Results) -> str:
    """Machine, figures, memory, ablation, what was left out."""
    parts = [_machine(results), _speed(results), _memory(results), _ablation(results), _left_out(results)]
    return "\n".join(part for part in parts if part)


def _machine(results: Results) -> str:
    m: Machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    memory = f"{m.memory_bytes / 2**30:.0f}"
    flags = ", ".join(m.flags) or "none of note"
    quick = (
        " **A quick run: it shows that everything works, its figures say little.**" if results.quick else ""
    )
    return (
        f"{m.cpu}, {_counted(m.cores, 'core')}, {_counted(m.threads, 'thread')}, {memory} GB of memory; "
        f"{flags}; {versions}. {results.when}, {results.seconds / 60:.1f} minutes.{quick}\n"
    )


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _speed(results: Results) -> str:
    lines = [
        "| workload | (a) | (b) | (c) | ours | ours / (a) | ours / (b) | ours / (c) | of the floor | GEMM, GFLOP/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for w in results.workloads:
        cells = [w.title, *(_rate(w.sides.get(name)) for name in ("a", "b", "c", "ours"))]
        cells += [_ratio(w.ratio(name)) for name in ("a", "b", "c")]
        ours = w.sides.get("ours")
        cells.append("" if ours is None else _spread(ours.of_floor, 100, "%", digits=0))
        rates = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in w.gemm_gflops.items())
        lines.append(f"| {' | '.join([*cells, rates])} |")
    return "\n".join(lines) + "\n"


def _rate(side: SideResult | None) -> str:
    if side is None:
        return ""
    if side.whole_s is None:
        return f"{side.texts_per_s.median:,.1f} texts/s"
    once = f", {side.once_s:,.0f} s of it once" if side.once_s else ""
    return f"{side.whole_s.median:,.0f} s{once}"


def _ratio(found: Figure | None) -> str:
    return "" if found is None else _spread(found, 1, " x", digits=1)


def _spread(found: Figure, factor: float, unit: str, *, digits: int) -> str:
    median, least, most = (
        f"{value * factor:.{digits}f}" for value in (found.median, found.least, found.most)
    )
    return f"**{median}{unit}** ({least} to {most})"


def _memory(results: Results) -> str:
    lines = ["| peak memory, MB | (a) | (b) | (c) | ours |", "|---|---|---|---|---|"]
    for w in results.workloads:
        sides = [w.sides.get(name) for name in ("a", "b", "c", "ours")]
        cells = ["" if side is None else f"{side.peak_bytes / 2**20:,.0f}" for side in sides]
        lines.append(f"| {' | '.join([w.title, *cells])} |")
    return "\n".join(lines) + "\n"


def _ablation(results: Results) -> str:
    rows = [
        _ablation_row(w, name.removeprefix(_BEFORE))
        for w in results.ablations
        for name in w.sides
        if name.startswith(_BEFORE)
    ]
    if not rows:
        return ""
    head = [
        "| workload | without | what happens instead | time, against all on | peak, MB |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _ablation_row(w: WorkloadResult, off: str) -> str:
    side = w.sides[_BEFORE + off]
    slower = _ratio(w.ratio(side.name))
    return f"| {w.title} | {off} | {SWITCHES[off]} | {slower} | {side.peak_bytes / 2**20:,.0f} |"


def _left_out(results: Results) -> str:
    return "".join(f"\nNot measured: {name}: {reason}.\n" for name, reason in results.left_out.items())
