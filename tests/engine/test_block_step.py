"""Blocks forward and backward by hand: against autograd on the same parts, and computed again to the same bits.

`test_program.py` holds them against transformers.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from engine.test_program import KINDS, adapted
from reference.families import LENGTHS, texts_of
from veneer.engine import Runner, compiled_attention, pack
from veneer.engine.beginnings import beginnings_of
from veneer.engine.block_step import BlockStep, ReadStep
from veneer.engine.block_tail import Tail
from veneer.engine.compiled_attention import row_attention
from veneer.engine.joined import Joined
from veneer.engine.native import kernels_for
from veneer.engine.row_attention import RowAttention, attend_rows
from veneer.lora import adapter_parameters


def gradients(model: Any, states: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1.0, 1.0, states.numel(), dtype=states.dtype).view_as(states)
    trained = dict(adapter_parameters(model))
    (states * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    for p in trained.values():
        p.grad = None
    return found


def program_and_batch(kind: str, **options: Any) -> tuple[Any, Any, Any]:
    model = adapted(kind, **options)
    runner = Runner.of(model, mode="packed")
    assert runner.program is not None
    return model, runner.program, pack(texts_of(LENGTHS["mixed"]))


def one_each(program: Any, batch: Any) -> Tensor:
    """The token of each text that sees its whole text."""
    found: Tensor = batch.layout.last if program.causal else batch.layout.first
    return found


def some(batch: Any) -> Tensor:
    """Every third token, and twice the second."""
    found: Tensor = torch.cat([torch.arange(0, batch.tokens, 3), torch.tensor([1, 1])])
    return found


def read_of(read: str, program: Any, batch: Any) -> Tensor | None:
    """The tokens that are read."""
    return {"all": None, "one each": one_each(program, batch), "some": some(batch)}[read]


READS = pytest.mark.parametrize("read", ["all", "one each", "some"])


@READS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_computing_again_gives_the_same_bits(kind: str, dtype: torch.dtype, read: str) -> None:
    model, program, batch = program_and_batch(kind)
    reads = read_of(read, program, batch)
    for name, p in model.named_parameters():
        if "lora" not in name and not p.requires_grad:
            p.data = p.data.to(dtype)
    kept = gradients(model, program(batch, reads))
    again = gradients(model, program(batch, reads, recompute=True))
    assert kept.keys() == again.keys()
    assert len(kept) > 4
    for name, grad in kept.items():
        assert torch.equal(grad, again[name]), name


@READS
@pytest.mark.parametrize("kind", ["GPT-2", "BERT"])
def test_trained_norms_get_the_gradients_that_autograd_finds(
    kind: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = ["ln_1", "ln_2"] if kind == "GPT-2" else ["attention.output.LayerNorm", "output.LayerNorm"]
    model, program, batch = program_and_batch(kind, modules_to_save=norms)
    reads = read_of(read, program, batch)
    by_hand = gradients(model, program(batch, reads))
    monkeypatch.setattr("veneer.engine.blocks.is_plain", lambda *_: False)
    composed = gradients(model, program(batch, reads))
    assert (
        sum("norm" in name.lower() or "ln_" in name for name in by_hand) == 8
    )  # weight and bias of two in two
    assert by_hand.keys() == composed.keys()
    for name, grad in composed.items():
        scale = float(grad.abs().max())
        assert float((by_hand[name] - grad).abs().max()) <= 5e-6 * max(scale, 1.0), name


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared beginnings"])
@pytest.mark.parametrize("below", [False, True], ids=["last block", "every block"])
def test_one_token_of_each_text_is_a_step_of_its_own(
    below: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without anything trained below, on tokens and on nodes: the composed block's states and gradients."""
    where = {} if below else {"layers_to_transform": 1}
    model, program, batch = program_and_batch("GPT-2", target_modules=["c_attn", "c_proj", "c_fc"], **where)
    tree = beginnings_of(batch, always=True) if shared else None
    reads = one_each(program, batch)
    steps: list[ReadStep] = []
    forward = ReadStep.forward
    monkeypatch.setattr(ReadStep, "forward", lambda self, x: steps.append(self) or forward(self, x))
    states = program(batch, reads, shared=tree)
    assert len(steps) == 1
    assert len(steps[0].places) % 8 == 0
    by_hand = gradients(model, states)
    with torch.inference_mode():
        alone = program(batch, reads, shared=tree)
    monkeypatch.setattr("veneer.engine.blocks.is_plain", lambda *_: False)
    composed = program(batch, reads, shared=tree)
    for found in (states, alone):
        torch.testing.assert_close(found, composed, rtol=0, atol=2e-6)
    expected = gradients(model, composed)
    assert by_hand.keys() == expected.keys()
    assert len(expected) == (16 if below else 8)
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        assert float((by_hand[name] - grad).abs().max()) <= 5e-6 * max(scale, 1.0), name


@pytest.mark.parametrize("below", [False, True], ids=["last block", "every block"])
@pytest.mark.parametrize("kind", KINDS)
def test_some_tokens_are_read_behind_attention_alone(
    kind: str, below: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block by hand too: the states and gradients of the whole block, of which the others are thrown away."""
    targets = ["c_attn", "c_proj", "c_fc"] if kind == "GPT-2" else ["query", "key", "value", "dense"]
    where = {} if below else {"target_modules": targets, "layers_to_transform": 1}
    model, program, batch = program_and_batch(kind, **where)
    reads = some(batch)
    steps: list[BlockStep] = []
    forward = BlockStep.forward
    monkeypatch.setattr(BlockStep, "forward", lambda self, x: steps.append(self) or forward(self, x))
    states = program(batch, reads)
    assert [step.read for step in steps[-1:]] == [len(reads)]
    assert len(states) == len(reads)
    by_hand = gradients(model, states)
    with torch.inference_mode():
        alone = program(batch, reads)
    whole = program(batch)
    expected = gradients(model, whole.index_select(0, reads))
    for found in (states, alone):
        torch.testing.assert_close(found, whole.index_select(0, reads), rtol=0, atol=2e-6)
    assert by_hand.keys() == expected.keys()
    for name, grad in expected.items():
        scale = float(grad.abs().max())
        assert float((by_hand[name] - grad).abs().max()) <= 5e-6 * max(scale, 1.0), name


@pytest.mark.parametrize("kind", ["GPT-2", "BERT"])
def test_a_change_without_a_trace_is_computed_with(kind: str) -> None:
    """PyTorch's fused optimisers do not count their changes; nothing of the adapter may be kept from call to call."""
    model, program, batch = program_and_batch(kind)
    weights = [p for _, p in adapter_parameters(model)]
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
    padded = Runner.of(model, mode="padded")
    for _ in range(2):
        program(batch).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(program(batch), padded.hidden_states(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_change_between_forward_and_backward_is_refused(recompute: bool) -> None:
    """As PyTorch does for its own layers: the gradients would be those of neither."""
    model, program, batch = program_and_batch("BERT")
    states = program(batch, recompute=recompute)
    with torch.no_grad():
        next(p for _, p in adapter_parameters(model)).add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.square().sum().backward()


def test_a_graph_that_is_kept_gives_the_same_gradients_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, program, batch = program_and_batch("GPT-2")
    calls: list[int] = []
    forward = BlockStep.forward
    monkeypatch.setattr(BlockStep, "forward", lambda self, x: calls.append(1) or forward(self, x))
    total = program(batch).square().sum()
    total.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in adapter_parameters(model) if p.grad is not None}
    total.backward()
    assert len(calls) == 2  # two blocks, and nothing computed again
    for name, p in adapter_parameters(model):
        if name in once:
            assert torch.allclose(p.grad, 2 * once[name])


@pytest.mark.parametrize("size", [32, 40])
def test_longer_texts_go_to_the_matrix_unit_whole(size: int) -> None:
    """In bf16, and where its tiles take the heads: the numbers are those of block by block."""
    layout = pack(texts_of([900, 5])).layout
    plain = RowAttention(layout, 2, 0.1, True, None, None)
    for dtype in (torch.float32, torch.bfloat16):
        qkv = torch.randn(layout.rows, 6 * size, generator=torch.Generator().manual_seed(0)).to(dtype)
        found, compiled = row_attention(plain, qkv, size), kernels_for(qkv)
        tiled = compiled is not None and compiled.attends_in_tiles(dtype, size)
        assert (found is not None) == tiled
        if found is not None:
            y = attend_rows(qkv, layout, 2, 0.1, causal=True)[: layout.tokens]
            assert_close(found.forward(qkv)[0][: layout.tokens], y, rtol=0, atol=0.02)
        longer = replace(plain, layout=pack(texts_of([2049])).layout)
        assert row_attention(longer, qkv, size) is None


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_whole_and_block_by_block(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of up to so many tokens go to the kernels whole, longer ones block by block: the same numbers."""
    model, program, _ = program_and_batch(kind)
    batch = pack(texts_of(LENGTHS["long"]))
    found = []
    for limit in (compiled_attention.COMPILED_TOKENS, 100):
        monkeypatch.setattr(compiled_attention, "COMPILED_TOKENS", limit)
        x = torch.zeros(batch.layout.rows, program.width)
        by_hand = program.blocks[0]._attention(x, batch.layout, None) is not None
        assert by_hand == (limit > 300 and kernels_for(x) is not None)
        states = program(batch)
        found.append((states.detach(), gradients(model, states)))
    (whole, of_whole), (in_blocks, of_blocks) = found
    assert_close(whole, in_blocks, rtol=1e-4, atol=1e-5)  # fp32 sums in another order
    assert of_whole.keys() == of_blocks.keys()
    for name, gradient in of_whole.items():
        assert_close(gradient, of_blocks[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_attention_stays_in_memory_behind_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient: queries, keys and values are gone when the feed-forward layer begins."""
    _, program, batch = program_and_batch(kind)
    states: list[weakref.ref[Tensor]] = []
    seen: list[bool] = []
    of_product, of_tail = Joined.forward, Tail.alone

    def product(self: Joined, *given: Any) -> Any:
        found = of_product(self, *given)
        if found[0].shape[1] == 3 * program.width:
            states.append(weakref.ref(found[0]))
        return found

    def tail(self: Tail, *given: Any) -> Tensor:
        seen.append(states[-1]() is None)
        return of_tail(self, *given)

    monkeypatch.setattr(Joined, "forward", product)
    monkeypatch.setattr(Tail, "alone", tail)
    with torch.inference_mode():
        program(batch)
    assert seen == [True] * len(program.blocks)
