"""Texts that begin alike: the same loss and gradients as transformers' padded computation, with fewer rows computed."""

from __future__ import annotations

import posixpath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from reference.families import FAMILIES, texts_of
from reference.peft_oracle import KINDS, compare_with_peft
from veneer.engine import Runner, choose_kernels, pack, use_kernels
from veneer.engine.beginnings import beginnings_of, common_beginning, nodes_of, tree_of
from veneer.engine.blocks import Block
from veneer.engine.joined import Joined
from veneer.engine.native.choice import Wanted, own_kernels
from veneer.lora import LoraConfig, adapter_parameters, attach


def _alike(lengths: tuple[int, ...] = (4, 1, 9, 12, 7), common: int = 20) -> list[Any]:
    """Random texts behind one beginning, and one text twice."""
    beginning = texts_of((common,), seed=5)[0]
    found = [np.concatenate([beginning, text]) for text in texts_of(lengths)]
    return [*found, found[0]]


def test_the_tree() -> None:
    batch = pack([[1, 2, 3], [1, 2, 4, 5], [9], [1, 2, 3]])
    found = beginnings_of(batch, always=True)
    assert found is not None
    assert found.nodes == 6  # 9, 1, 2, 3, 4, 5
    T = batch.tokens
    nodes = found.node_of_token[:T]
    assert_close(batch.input_ids[found.first_token][nodes], batch.input_ids)
    assert_close(batch.position_ids[found.first_token][nodes], batch.position_ids)
    assert len(found.node_of_token) == batch.layout.rows


@given(st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=4))
def test_the_common_beginning_is_the_one_that_paths_have(texts: list[list[int]]) -> None:
    found = posixpath.commonpath(["/" + "/".join(map(str, text)) for text in texts])
    assert common_beginning(texts) == len(found.split("/")) - 1 - (found == "/")


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_nodes_are_counted_without_the_tree(texts: list[list[int]]) -> None:
    batch = pack(texts)
    assert nodes_of(batch) == len(tree_of(batch)[1])


def test_it_is_left_where_it_saves_little() -> None:
    assert beginnings_of(pack(texts_of((9, 12, 20)))) is None
    assert beginnings_of(pack(_alike())) is not None


@pytest.mark.parametrize("kernels", ["auto", "pytorch"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "BERT"])
def test_loss_and_gradients_are_those_of_peft(kind: str, kernels: Wanted) -> None:
    """Each block by hand, the tree under it: no part has a graph of its own."""
    texts = _alike()
    with pytest.MonkeyPatch.context() as patch, own_kernels():
        use_kernels(choose_kernels(kernels, torch.device("cpu")))
        patch.setattr(Block, "_composed", lambda *_: pytest.fail("a block of parts"))
        loss, gradients = compare_with_peft(FAMILIES[kind], [len(text) for text in texts], texts)
    assert loss < 1e-5  # fp32, sums in another order
    assert gradients < 1e-5


@pytest.mark.parametrize("reads", ["all", "some", "last"])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("recompute", [False, True])
def test_sharing_changes_no_state_and_no_gradient_of_an_adapter(
    reads: str, start: int, *, recompute: bool
) -> None:
    model = FAMILIES["GPT-2"].model()
    attach(model, LoraConfig(r=2, target_modules=(r"c_attn", "c_fc")), seed=0)
    weights = [p for _, p in adapter_parameters(model)]
    with torch.no_grad():
        for p in weights:
            p.normal_(0.0, 0.3)
    program = Runner.of(model, mode="packed").program
    assert program is not None
    batch = pack(_alike())
    T = batch.tokens
    places = {"all": None, "some": torch.arange(3, T, 4), "last": batch.layout.last}[reads]
    x = program.prefix(batch, start).clone() if start else None  # a training run's own tensor
    shared = beginnings_of(batch)
    assert shared is not None
    found = []
    for one in (None, shared):
        out = program(batch, places, start=start, x=x, shared=one, recompute=recompute)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        gradients = torch.autograd.grad((out * weight).sum(), weights, allow_unused=True)
        found.append((out.detach(), [g for g in gradients if g is not None]))
    assert found[0][0].shape == (T if places is None else len(places), model.config.n_embd)
    assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert len(found[0][1]) >= 4
    for mine, theirs in zip(found[1][1], found[0][1], strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4)  # sums over texts in another order


def test_attention_without_a_gradient_goes_from_node_to_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels a prediction lays out no row for each token; the states are those of the texts alone."""
    if choose_kernels("auto", torch.device("cpu")).name != "compiled":
        pytest.skip("no compiler here")
    runner = Runner.of(FAMILIES["GPT-2"].model().requires_grad_(False), mode="packed")
    assert runner.program is not None
    texts = _alike()
    batch = pack([*texts, texts[0][:4], texts[1]])  # a text that another begins with, and one twice
    alone = runner.program(batch)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr("veneer.engine.blocks.NodeAttention", lambda *_: pytest.fail("rows were laid out"))
        shared = runner.program(batch, shared=beginnings_of(batch, always=True))
    assert_close(shared, alone, rtol=1e-5, atol=1e-5)


def test_fewer_rows_are_computed() -> None:
    model = FAMILIES["GPT-2"].model().requires_grad_(False)
    runner = Runner.of(model, mode="packed")
    assert runner.program is not None
    rows: list[int] = []
    product = Joined.forward

    def counted(self: Joined, x: torch.Tensor, *more: Any, **named: Any) -> Any:
        rows.append(len(x))
        return product(self, x, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Joined, "forward", counted)
        batch = pack(_alike((4, 1, 9, 12, 7) * 4, common=40))
        runner.hidden_states(batch)
    assert max(rows) < 0.4 * batch.tokens
