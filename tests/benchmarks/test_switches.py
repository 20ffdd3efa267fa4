"""A technique switched off computes the same: what the ablation measures is time, not another training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.materials import make
from benchmarks.ours import adapted_for
from benchmarks.switches import SWITCHES, without
from benchmarks.workloads import WORKLOADS

from veneer.engine import pack
from veneer.lora import adapter_parameters


@pytest.mark.parametrize("workload", ["tiny-gpt2", "tiny-predict"])
def test_loss_and_gradients_stay(tmp_path: Path, workload: str) -> None:
    tiny = WORKLOADS[workload]
    materials = make(tiny, tmp_path, tmp_path)
    flat, offsets, labels = materials.read_texts()
    texts = [flat[offsets[i] : offsets[i + 1]] for i in range(6)]

    def gradients(off: tuple[str, ...]) -> list[torch.Tensor]:
        with without(off):
            adapted = adapted_for(tiny, materials, "fp32", off)
            assert (adapted.runner.program is None) == bool({"packing", "program"} & set(off))
            batch = pack(texts)
            targets = adapted.task.collate(labels[list(batch.order)])
            loss = adapted.task.loss(adapted.outputs(batch), targets)
            loss.backward()
        weights = adapter_parameters(adapted.model)
        assert weights
        return [loss.detach(), *(p.grad for _, p in weights if p.grad is not None)]

    expected = gradients(())
    for off in sorted(SWITCHES.keys() - {"bf16", "prefix"}):
        for found, wanted in zip(gradients((off,)), expected, strict=True):
            # fp32: sums in another order
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
