"""Products meet few numbers of rows: whatever is read, however many tokens are labelled or texts predicted.

Values are held against the padded computation in `test_program.py`, `test_decoders.py` and `test_token_loss.py`; here
the numbers of rows alone are looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.test_program import adapted, texts_of
from veneer.engine import Runner, blocks, pack
from veneer.engine.frozen import FrozenLinear, takes_any_rows
from veneer.engine.native import kernels
from veneer.engine.packing import few_numbers, filled_up
from veneer.engine.token_loss import token_losses
from veneer.tasks.adapted import length_batches


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of rows of all frozen products from here on, forward and backward, as where each costs kernels."""
    found: set[int] = set()
    monkeypatch.setattr(blocks, "takes_any_rows", lambda _: False)
    for name in ("product", "input_gradient", "adapted", "adapted_gradient"):
        inner = getattr(FrozenLinear, name)

        def watched(self: FrozenLinear, x: Tensor, *more: Any, inner: Any = inner) -> Any:
            found.add(len(x))
            return inner(self, x, *more)

        monkeypatch.setattr(FrozenLinear, name, watched)
    return found


@given(st.integers(1, 10_000))
def test_few_numbers_are_few_and_waste_little(n: int) -> None:
    filled = few_numbers(n)
    assert n <= filled < n * 1.25 + 8
    assert few_numbers(filled) == filled


def test_they_are_few() -> None:
    assert len({few_numbers(n) for n in range(1, 1025)}) == 8 + 12 + 24
    assert len({few_numbers(n) for n in range(1025, 4097)}) == 24


@given(st.integers(1, 300), st.sampled_from([(), (3,), (2, 3)]))
def test_what_is_filled_up_keeps_its_rows(n: int, more: tuple[int, ...]) -> None:
    x = torch.rand(n, *more) + 1.0
    filled = filled_up(x)
    assert filled.shape == (few_numbers(n), *more)
    assert torch.equal(filled[:n], x)
    assert not filled[n:].any()


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
def test_read_positions(kind: str, rows: set[int]) -> None:
    """Nine to sixteen tokens read, of texts that fill the same number of rows."""
    runner = Runner.of(adapted(kind))
    batch = pack(texts_of((11, 9, 8)))
    rows.clear()
    for n in range(9, 17):
        states = runner.hidden_states(batch, torch.arange(n))
        assert states.shape[0] == n
        states.square().sum().backward()
    assert rows == {16, batch.layout.rows}


@pytest.mark.parametrize("kind", ["BERT", "GPT-2"])
def test_one_token_of_each_text(kind: str, rows: set[int]) -> None:
    runner = Runner.of(adapted(kind))
    rows.clear()
    with torch.inference_mode():
        for texts in range(9, 13):
            batch = pack(texts_of((3,) * texts))
            reads = batch.layout.last if kind == "GPT-2" else batch.layout.first
            assert len(runner.hidden_states(batch, reads)) == texts
    assert rows == {16, 32, 64}  # read ones, and those of 27 to 36 tokens


@pytest.mark.parametrize("any_rows", [False, True])
def test_rows_are_filled_up_where_a_new_number_costs_something(
    monkeypatch: pytest.MonkeyPatch, any_rows: bool
) -> None:
    monkeypatch.setattr(blocks, "takes_any_rows", lambda _: any_rows)
    program = Runner.of(adapted("GPT-2")).program
    assert program is not None
    few, many = pack(texts_of((11, 9, 8))), pack(texts_of((20,) * 52))
    assert program.rows(few) == (28 if any_rows else 32)
    assert program.rows(many) == 1088


def test_whose_products_take_any_number_of_rows() -> None:
    compiled = kernels()
    own = compiled is not None and compiled.takes_frozen(torch.float32, 16, 16)
    assert takes_any_rows(torch.zeros(1)) is own
    assert not takes_any_rows(torch.zeros(1, dtype=torch.bfloat16))


def test_labelled_tokens(rows: set[int]) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 40, bias=False).requires_grad_(requires_grad=False)
    for labelled in (65, 77, 80):
        states = torch.randn(labelled, 6).requires_grad_()
        token_losses(states, torch.zeros(labelled, dtype=torch.int64), head).sum().backward()
        assert states.grad is not None
        assert bool((states.grad.abs().sum(dim=1) > 0).all())
    assert rows == {80}


def test_batches_of_a_prediction_are_filled_alike() -> None:
    lengths = np.random.default_rng(0).integers(5, 80, 2000)
    batches = length_batches(lengths)
    assert sorted(np.concatenate(batches)) == list(range(2000))
    tokens = [int(lengths[batch].sum()) for batch in batches]
    assert max(tokens) < 3072
    assert min(tokens[: len(tokens) // 2]) >= 3072 - 80  # later ones hold 256 texts
    assert all(len(batch) * lengths[batch].max() <= 2 * 3072 for batch in batches)
    assert [len(batch) for batch in length_batches(np.array([9000, 3]))] == [1, 1]
