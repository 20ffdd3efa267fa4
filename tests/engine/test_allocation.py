"""Pages of a mapped file are let go where nothing can be lost by it, and only there."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from veneer.engine import allocation
from veneer.engine.allocation import let_go_of_file_pages
from veneer.engine.frozen import FrozenLinear
from veneer.engine.linears import LinearGroup
from veneer.engine.native import kernels

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no way to ask on this system")

ROWS = 512


def mapped(folder: Path) -> Tensor:
    """(512, 512) float32, mapped from a file, every page of it read."""
    file = folder / "weights"
    file.write_bytes(torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(0)).numpy().tobytes())
    weight = torch.from_file(str(file), shared=False, size=ROWS * ROWS).view(ROWS, ROWS)
    weight.sum()
    return weight


def held(x: Tensor) -> int:
    """How many of its pages are in the process."""
    first, pages = x.data_ptr() // mmap.PAGESIZE, x.nbytes // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as words:
        words.seek(8 * first)
        return sum(word >> 63 for word in memoryview(words.read(8 * pages)).cast("Q"))


def test_pages_that_were_only_read_are_let_go_and_come_back(tmp_path: Path) -> None:
    weight = mapped(tmp_path)
    before, copy = held(weight), weight.clone()
    assert let_go_of_file_pages(weight.data_ptr(), weight.nbytes)
    assert held(weight) == 0 < before
    assert torch.equal(weight, copy)


def test_a_weight_that_was_written_to_stays(tmp_path: Path) -> None:
    weight = mapped(tmp_path)
    weight[300, 7] = 5.0
    assert not let_go_of_file_pages(weight.data_ptr(), weight.nbytes)
    assert weight[300, 7] == 5.0


def test_memory_of_no_file_stays() -> None:
    weight = torch.randn(ROWS, ROWS)
    copy = weight.clone()
    assert not let_go_of_file_pages(weight.data_ptr(), weight.nbytes)
    assert torch.equal(weight, copy)


def test_pages_that_belong_to_others_in_part_stay(tmp_path: Path) -> None:
    weight = mapped(tmp_path)
    pages = weight.view(torch.uint8).view(-1, mmap.PAGESIZE)
    assert not let_go_of_file_pages(weight.data_ptr() + 8, mmap.PAGESIZE)
    assert let_go_of_file_pages(weight.data_ptr() + 8, 2 * mmap.PAGESIZE)
    assert [held(page) for page in pages[:3]] == [1, 0, 1]


def test_a_system_that_does_not_say_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_PAGEMAP", tmp_path / "there is none")
    weight = mapped(tmp_path)
    assert not let_go_of_file_pages(weight.data_ptr(), weight.nbytes)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_in_the_layout_of_its_product_is_not_held_twice(tmp_path: Path, transposed: bool) -> None:
    weight = mapped(tmp_path)
    compiled = kernels()
    if compiled is None or not compiled.takes_frozen(torch.float32, ROWS, ROWS):
        pytest.skip("the kernels have no such product here")
    linear, x = FrozenLinear(weight, transposed=transposed), torch.randn(3, ROWS)
    first = linear.product(x, None)
    assert held(weight) == 0
    torch.testing.assert_close(linear.product(x, None), first, rtol=0, atol=0)
    torch.testing.assert_close(first, x @ (weight if transposed else weight.t()), rtol=1e-4, atol=1e-4)


def test_weights_that_are_laid_side_by_side_are_not_held_where_they_were(tmp_path: Path) -> None:
    parent, before = nn.Module(), []
    for name in ("q", "k"):
        (tmp_path / name).mkdir()
        weight = mapped(tmp_path / name)
        before.append(weight)
        layer = nn.Linear(ROWS, ROWS, bias=False).requires_grad_(False)
        layer.weight.data = weight
        parent.add_module(name, layer)
    x = torch.randn(3, ROWS)
    found = LinearGroup((parent, "q"), (parent, "k"))(x)
    assert [held(weight) for weight in before] == [0, 0]
    torch.testing.assert_close(
        found, torch.cat([x @ weight.t() for weight in before], 1), rtol=1e-4, atol=1e-4
    )
