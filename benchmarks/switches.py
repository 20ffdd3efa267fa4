"""One technique of ours switched off, for the ablation; from the outside, so that the library has no such switches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.apart import Apart
from veneer.engine import PackedBatch, Runner, choose_kernels, own_kernels, use_kernels
from veneer.engine.activations import Activation, activation_of
from veneer.engine.packing import Layout
from veneer.tasks.adapted import Adapted

__all__ = ["SWITCHES", "mode_of", "precision_of", "rewired", "without"]

SWITCHES: dict[str, str] = {
    "packing": "padded to the longest of the batch, through transformers' own forward",
    "program": "packed, but through transformers' own forward",
    "node": "a block from differentiable parts, not as one node of the graph",
    "reads": "the last block computed whole",
    "bf16": "frozen weights and activations in fp32",
    "prefix": "the frozen layers below the first adapted one computed in every epoch",
    "beginnings": "what texts have in common at their beginning computed for each of them",
    "joined": "query, key and value as three products each",
    "blocks": "frozen weights as PyTorch keeps them, not laid out for the product",
    "activation": "the activation by PyTorch's own kernel",
    "attention": "attention by `scaled_dot_product_attention` on padded groups, and without `node`",
    "shapes": "numbers of rows as they come, not filled up to repeat",
    "allocation": "freed memory given back to the system",
    "kernels": "PyTorch's operators in place of the compiled kernels",
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
        if "kernels" in off:
            stack.enter_context(own_kernels())
            use_kernels(choose_kernels("pytorch", torch.device("cpu")))
        for technique in set(off) & _PATCHES.keys():
            for place, instead in _PATCHES[technique]:
                stack.enter_context(patch(place, instead))
        yield


def rewired(adapted: Adapted, off: Collection[str]) -> Adapted:
    """The same adapter, run without these techniques."""
    runner: Any = adapted.runner
    if "program" in off:
        runner = replace(runner, program=None)
    if "joined" in off and runner.program is not None:
        # Where query, key and value are one layer of the base, nothing was joined.
        blocks = [
            replace(block, qkv=Apart(block.qkv)) if len(block.qkv.slots) > 1 else block
            for block in runner.program.blocks
        ]
        runner = replace(runner, program=replace(runner.program, blocks=blocks))
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


def _plain_activation(name: str) -> Activation | None:
    found = activation_of(name)
    return None if found is None else replace(found, after=None, by_identity=False, kernel=None)


def _sdpa_rows(qkv: Tensor, layout: Layout, heads: int, scaling: float, *, causal: bool) -> Tensor:
    """(R, 3 C) -> (R, C), as `veneer.engine.row_attention.attend_rows`, by PyTorch's function."""
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
    return nn.functional.pad(torch.cat(parts), (0, 0, 0, qkv.shape[0] - layout.tokens))


def _never(*_: Any, **__: Any) -> bool:
    return False


def _itself(rows: int) -> int:
    return rows


def _none(*_: Any, **__: Any) -> None:
    return None


_PATCHES: dict[str, list[tuple[str, Any]]] = {
    "node": [("veneer.engine.blocks.is_plain", _never)],
    "beginnings": [
        ("veneer.engine.runner.beginnings_of", _none),
        ("veneer.engine.prefix.beginnings_of", _none),
    ],
    "blocks": [
        ("veneer.engine.frozen.has_blocks", _never),
        ("veneer.engine.native.Kernels.takes_frozen", _never),
    ],
    "activation": [("veneer.engine.families.activation_of", _plain_activation)],
    "attention": [
        ("veneer.engine.blocks.attend_rows", _sdpa_rows),
        ("veneer.engine.blocks.is_plain", _never),
    ],
    "shapes": [
        ("veneer.engine.packing.Layout.rows", property(lambda layout: layout.tokens)),
        ("veneer.engine.packing.few_numbers", _itself),
        ("veneer.engine.beginnings._STEP", 1),
        ("veneer.engine.bins._STEP", 1),
    ],
    "allocation": [("veneer.engine.runner.keep_freed_memory", _none)],
}
"""Where a technique is found, and what stands there without it; the others are switched by the functions above."""
