"""One technique of ours switched off, for the ablation; from the outside, so that the library has no such switches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from veneer.engine import PackedBatch, Runner
from veneer.engine.packing import Layout
from veneer.tasks.adapted import Adapted

__all__ = ["SWITCHES", "mode_of", "precision_of", "rewired", "without"]

SWITCHES: dict[str, str] = {
    "packing": "padded to the longest of the batch, through transformers' own forward",
    "program": "packed, but through transformers' own forward",
    "reads": "the last block computed whole",
    "bf16": "frozen weights and activations in fp32",
    "prefix": "the frozen layers below the first adapted one computed in every epoch",
    "activation": "the activation by PyTorch's own kernel, not by table",
    "attention": "attention by `scaled_dot_product_attention` on padded groups",
}
"""Name, and what happens without the technique."""


def mode_of(off: Collection[str]) -> Any:
    """`mode` of `adapt`."""
    return "padded" if "packing" in off else "auto"


def precision_of(off: Collection[str], chosen: str) -> Any:
    """`precision` of `adapt`."""
    return "fp32" if "bf16" in off else chosen


@contextmanager
def without(off: Collection[str]) -> Iterator[None]:
    """Inside it the engine is built and run without these techniques; some are switched by the other functions."""
    unknown = set(off) - SWITCHES.keys()
    if unknown:
        raise ValueError(f"there is no technique {', '.join(sorted(unknown))}; known: {', '.join(SWITCHES)}")
    with ExitStack() as stack:
        if "activation" in off:
            stack.enter_context(patch("veneer.engine.families.activation_of", _plain_activation))
        if "attention" in off:
            stack.enter_context(patch("veneer.engine.blocks.attend_rows", _sdpa_rows))
        yield


def rewired(adapted: Adapted, off: Collection[str]) -> Adapted:
    """The same adapter, run without these techniques."""
    runner: Any = adapted.runner
    if "program" in off:
        runner = replace(runner, program=None)
    if "reads" in off:
        runner = _ReadsEverything(runner)
    return replace(adapted, runner=runner)


@dataclass(frozen=True)
class _ReadsEverything:
    """A runner that computes the states of all tokens, whatever is read."""

    inner: Runner

    @property
    def program(self) -> Any:
        """That of the runner."""
        return self.inner.program

    def hidden_states(
        self, batch: PackedBatch, reads: Tensor | None = None, below: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """As `Runner.hidden_states`."""
        hidden = self.inner.hidden_states(batch, None, below)
        return hidden if reads is None else hidden.index_select(0, reads)


def _plain_activation(name: str) -> Any:
    tanh = name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
    return {
        "gelu": nn.functional.gelu,
        "relu": nn.functional.relu,
        "silu": nn.functional.silu,
        "swish": nn.functional.silu,
    }.get(name) or ((lambda x: nn.functional.gelu(x, approximate="tanh")) if tanh else None)


def _sdpa_rows(qkv: Tensor, layout: Layout, heads: int, scaling: float, *, causal: bool) -> Tensor:
    """(T, 3 C) -> (T, C), as `veneer.engine.row_attention.attend_rows`, by PyTorch's function."""
    parts = []
    for group in layout.groups:
        rows, n, L = qkv[group.start : group.end], group.n, group.longest
        if group.valid is not None:
            rows = rows.new_zeros(n * L, rows.shape[1]).index_copy(0, group.valid, rows)
        q, k, v = rows.view(n, L, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (n, H, L, D) each
        seen = None
        if not causal and group.padding is not None:
            seen = ~group.padding.unsqueeze(1)  # (n, 1, 1, L)
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=causal, scale=scaling
        )
        flat = out.transpose(1, 2).reshape(n * L, -1)
        parts.append(flat if group.valid is None else flat.index_select(0, group.valid))
    return torch.cat(parts)
