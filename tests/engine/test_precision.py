"""The precision: chosen by a measurement, with a reason; bf16 near fp32."""

from __future__ import annotations

import time

import pytest
import torch

from reference.families import FAMILIES, LENGTHS, texts_of
from veneer.engine import Runner, choose_precision, pack, precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_asked_for_is_not_measured(name: str, dtype: torch.dtype) -> None:
    found = choose_precision(name, CPU)  # type: ignore[arg-type]
    assert (found.name, found.dtype, found.reason, found.gflops) == (name, dtype, "asked for", {})


@pytest.mark.parametrize(("ratio", "expected"), [(4.0, "bf16"), (1.31, "bf16"), (1.2, "fp32"), (0.1, "fp32")])
def test_auto_takes_bf16_where_it_is_worth_its_rounding(
    ratio: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {torch.float32: 100.0, torch.bfloat16: 100.0 * ratio}
    monkeypatch.setattr(precision, "gemm_rate", lambda dtype, **_: rates[dtype])
    found = choose_precision("auto", CPU)
    assert found.name == expected
    assert f"{100 * ratio:.0f} against 100 GFLOP/s" in found.reason
    assert found.gflops == {"fp32": 100.0, "bf16": 100.0 * ratio}


def test_the_measurement_is_short_and_of_this_machine() -> None:
    choose_precision("auto", CPU, budget_s=0.001)  # compiles the kernels
    began = time.perf_counter()
    found = choose_precision("auto", CPU)
    assert time.perf_counter() - began < 1.0
    assert set(found.gflops) == {"fp32", "bf16"}
    assert min(found.gflops.values()) > 0


def test_other_devices_are_told_apart() -> None:
    found = choose_precision("auto", torch.device("mps"))
    assert found.name == "fp32"
    assert "not measured on mps" in found.reason


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_in_bf16_are_near_fp32(name: str) -> None:
    """bf16 rounds to 2^-9 of a value; two to four layers of it stay within a few percent of the largest state."""
    batch = pack(texts_of(LENGTHS["mixed"]))
    exact = Runner.of(FAMILIES[name].model()).hidden_states(batch)
    runner = Runner.of(FAMILIES[name].model(dtype=torch.bfloat16))
    assert runner.mode == "packed"
    rounded = runner.hidden_states(batch)
    assert rounded.dtype == torch.bfloat16
    off = (rounded.float() - exact).abs().mean() / exact.abs().mean()
    assert float(off.detach()) < 0.06
