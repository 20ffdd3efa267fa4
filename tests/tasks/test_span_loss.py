"""The span loss against transformers' own classes and torch. Tolerance 1e-5: fp32 sums of a few hundred terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from veneer.data.ragged import Ragged
from veneer.engine import pack
from veneer.tasks.span_loss import mean_span_loss, packed_span_loss

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def plain(logits: torch.Tensor, lengths: list[int], targets: torch.Tensor) -> torch.Tensor:
    """torch's cross-entropy, text by text."""
    losses = []
    for piece, target in zip(logits.split(lengths), targets, strict=True):
        losses += [nn.functional.cross_entropy(piece[:, k][None], target[k][None]) for k in (0, 1)]
    return torch.stack(losses).mean()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 1000), st.sampled_from([1.0, 1e3]))
@settings(deadline=None, max_examples=40)
def test_loss_and_gradient_are_torchs(lengths: list[int], seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    layout = pack([list(range(n)) for n in lengths]).layout
    logits = (scale * torch.randn(sum(lengths), 2)).requires_grad_()
    targets = torch.stack([torch.randint(0, n, (2,)) for n in layout.lengths])
    found = packed_span_loss(logits, targets, layout)
    expected = plain(logits, list(layout.lengths), targets)
    torch.testing.assert_close(found, expected, **CLOSE)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, **CLOSE)
    numbers = Ragged(logits.detach().numpy(), np.cumsum([0, *layout.lengths]))
    assert mean_span_loss(numbers, targets.numpy()) == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
