"""The anatomy of a step: its parts add up, and operators are counted under the right heading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.anatomy import (
    ATTENTION,
    COPIES,
    FROZEN,
    KINDS,
    LORA,
    NORMS,
    OTHER,
    OUTSIDE,
    Operator,
    anatomy,
    kind_of,
)
from benchmarks.side import SideSpec
from benchmarks.workloads import WORKLOADS

from benchmarks import materials
from veneer.engine import choose_kernels


@pytest.mark.filterwarnings("ignore:.*")  # the profiler's own
def test_the_parts_of_a_step_add_up(tmp_path: Path) -> None:
    made = materials.make(WORKLOADS["tiny-gpt2"], tmp_path, tmp_path)
    spec = SideSpec("ours", "tiny-gpt2", made.to_json(), "fp32")
    found = anatomy(spec, warm=2, steps=3)
    assert set(found.kinds) == set(KINDS)
    assert sum(found.kinds.values()) == pytest.approx(found.step_ms, rel=1e-6) or found.kinds[OUTSIDE] == 0.0
    assert 0.0 < sum(found.phases.values()) <= found.step_ms
    assert min(found.phases.values()) > 0.0
    # Three blocks, every linear layer adapted: two norms each, and one is last.
    norms = sum(op.calls for op in found.operators if op.name in ("aten::native_layer_norm", "veneer::norm"))
    assert norms == 2 * 3 + 1
    assert "tiny-gpt2" in found.table(shapes=True)


@pytest.mark.filterwarnings("ignore:.*")  # the profiler's own
def test_the_compiled_kernels_are_seen_by_name(tmp_path: Path) -> None:
    if choose_kernels("auto", torch.device("cpu")).name != "compiled":
        pytest.skip("no compiler here")
    made = materials.make(WORKLOADS["tiny-gpt2"], tmp_path, tmp_path)
    found = anatomy(SideSpec("ours", "tiny-gpt2", made.to_json(), "bf16"), warm=2, steps=3)
    seen = {op.name.removeprefix("veneer::") for op in found.operators if op.name.startswith("veneer::")}
    assert {"attend", "attend_gradient", "value", "gradient", "norm", "norm_gradient"} <= seen
    assert {"frozen_backward", "lora_backward"} & seen


def test_nothing_is_measured_where_the_engine_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = materials.make(WORKLOADS["tiny-gpt2"], tmp_path, tmp_path)
    monkeypatch.setattr("veneer.engine.runner.program_of", lambda _: None)
    with pytest.raises(
        RuntimeError, match="not the engine: checked against padded on two texts; through transf"
    ):
        anatomy(SideSpec("ours", "tiny-gpt2", made.to_json(), "fp32"), warm=2, steps=3)


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("mkldnn::_linear_pointwise", [[250, 768], [2304, 768]], FROZEN),
        ("aten::mm", [[250, 768], [768, 2304]], FROZEN),
        ("aten::mm", [[250, 768], [768, 48]], LORA),
        ("aten::addmm_", [[250, 2304], [250, 48], [48, 2304]], LORA),
        ("aten::bmm", [[96, 32, 64], [96, 64, 32]], ATTENTION),
        ("aten::native_layer_norm_backward", [[250, 768]], NORMS),
        ("aten::copy_", [[250, 768]], COPIES),
        ("veneer::lora_backward", [], LORA),
        ("veneer::frozen_backward", [], FROZEN),
        ("veneer::attend", [], ATTENTION),
        ("aten::t", [[250, 768]], OTHER),
    ],
)
def test_operators_have_a_kind(name: str, shapes: list[list[int]], kind: str) -> None:
    assert kind_of(name, shapes) == kind


def test_the_rate_of_a_frozen_product() -> None:
    operator = Operator(
        "mkldnn::_linear_pointwise", ((250, 768), (250, 2304), (2304, 768)), calls=2.0, ms=1.0
    )
    assert operator.gflops == pytest.approx(2 * 2 * 250 * 768 * 2304 / 1e-3 / 1e9)
    assert Operator("aten::copy_", ((250, 768),), 1.0, 1.0).gflops is None
