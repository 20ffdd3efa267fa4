"""The optimiser against the packed engine: what is computed after a step is computed with the new weights."""

from __future__ import annotations

from pathlib import Path

import torch

from bases import tiny_bert
from veneer.engine import Runner, pack
from veneer.lora import LoraConfig, adapter_parameters, attach
from veneer.models import load_base
from veneer.training.optimizer import make_optimizer


def test_a_fused_step_is_seen_by_the_packed_engine(tmp_path: Path) -> None:
    """PyTorch's fused kernel leaves no trace of its changes; the engine would compute with the old factors."""
    model = load_base(str(tiny_bert(tmp_path)), labels=("a", "b")).model
    attach(model, LoraConfig(r=4, target_modules="all-linear"), seed=0)
    weights = dict(adapter_parameters(model))
    optimizer = make_optimizer(weights, learning_rate=0.1, weight_decay=0.0)
    packed, padded = Runner.of(model, mode="packed"), Runner.of(model, mode="padded")
    assert packed.program is not None
    batch = pack([[5, 6, 7, 8], [9, 10]])
    for _ in range(3):
        before = packed.hidden_states(batch)
        before.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        after = packed.hidden_states(batch)
        torch.testing.assert_close(after, padded.hidden_states(batch), rtol=0, atol=1e-5)
        assert (after - before).abs().max().item() > 1e-3
