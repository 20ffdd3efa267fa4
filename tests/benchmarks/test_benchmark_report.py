"""Results survive JSON, and their table stands between the marks of the page, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.machine import Machine
from benchmarks.report import BEGIN, END, put_into, tables
from benchmarks.results import Figure, Results, SideResult, WorkloadResult

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def side(name: str, rounds: list[float], whole: list[float] | None = None) -> SideResult:
    return SideResult(
        name=name,
        texts_per_s=Figure.of(rounds),
        of_floor=Figure.of([0.5, 0.75]),
        peak_bytes=300 * 2**20,
        steps=6,
        step_ms=12.5,
        once_s=0.0 if whole is None else 7.0,
        whole_s=None if whole is None else Figure.of(whole),
        parameters=10,
    )


def results() -> Results:
    def workload(name: str, *sides: SideResult) -> WorkloadResult:
        rates = {"fp32": 100.0, "bf16": 400.0}
        return WorkloadResult(
            name, f"title of {name}", 10, 100, "bf16", rates, {s.name: s for s in sides}, 1e-3
        )

    return Results(
        machine=Machine("a processor", ("avx2",), 2, 2, 8 * 2**30, {"torch": "9"}),
        when="2030-01-01 00:00 UTC",
        seconds=90.0,
        quick=False,
        workloads=(
            workload("one", side("b", [10.0, 20.0]), side("ours", [40.0, 40.0])),
            workload("whole", side("b", [1.0, 1.0], [100.0, 90.0]), side("ours", [9.0, 9.0], [10.0, 10.0])),
        ),
        ablations=(workload("one", side("ours", [40.0, 40.0]), side("ours without reads", [20.0, 40.0])),),
        left_out={"instruction": "there is no task"},
    )


def test_json_and_back() -> None:
    found = results()
    again = Results.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert tables(again) == tables(found)


def test_ratios_are_taken_round_by_round() -> None:
    one, whole = results().workloads
    ratio = one.ratio("b")
    assert ratio is not None
    assert ratio.rounds == (4.0, 2.0)
    assert (ratio.median, ratio.least, ratio.most) == (3.0, 2.0, 4.0)
    seconds = whole.ratio("b")
    assert seconds is not None
    assert seconds.rounds == (10.0, 9.0)  # of whole runs: how much longer (b) takes
    assert one.ratio("a") is None


def test_the_table_says_what_was_measured() -> None:
    text = tables(results())
    assert "| title of one |  | 15.0 texts/s |  | 40.0 texts/s |  | **3.0 x** (2.0 to 4.0) |" in text
    assert "**62%** (50 to 75)" in text
    assert "| title of whole |  | 95 s, 7 s of it once |" in text
    assert "| title of one | reads | the last block computed whole | **1.5 x** (1.0 to 2.0) | 300 |" in text
    assert "Not measured: instruction: there is no task." in text


def test_the_table_stands_between_the_marks_once(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    put_into(page, results())
    once = page.read_text(encoding="utf-8")
    put_into(page, results())
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith("before\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    assert tables(results()) in once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_page_without_its_marks_is_refused(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="needs the marks"):
        put_into(page, results())
    assert page.read_text(encoding="utf-8") == text


def test_a_page_that_is_not_there_is_named_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("benchmarks.__main__.run", measured)
    assert main(["--page", str(tmp_path / "no.md")]) == 2
    assert "no.md" in capsys.readouterr().err


def test_the_documentation_has_the_marks() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
