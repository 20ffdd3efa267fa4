"""Every compiled kernel against PyTorch in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from veneer.engine.native import Adapters, Kernels, Part, Texts, choose_kernels
from veneer.engine.native import build as building
from veneer.engine.native import choice as choosing
from veneer.engine.threads import own_threads

EMULATED = Path(__file__).parent / "emulated"
"""Where what the kernels ask of a matrix unit is written out in loops."""


@pytest.fixture(scope="module", params=["native", "x86-64-v3", "x86-64", "matrix unit"])
def compiled(request: pytest.FixtureRequest) -> Kernels:
    """As this machine has them, with AVX2 and nothing above it, with registers of 16 bytes as NEON's, and for AMX."""
    return kernels_of(request.param)


@cache
def kernels_of(processor: str) -> Kernels:
    """As gcc makes them for it; "native" is this one, "matrix unit" one whose tiles lie in memory."""
    choice = choose_kernels("auto", torch.device("cpu"))
    if choice.name != "compiled":
        pytest.skip(choice.reason)
    if processor == "native":
        found, _ = choosing._tried()
        return found
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("no x86 with AVX2")
    more: list[str] = []
    if processor == "matrix unit":
        processor = "x86-64-v3"
        version = hashlib.sha256((EMULATED / "immintrin.h").read_bytes()).hexdigest()
        names = ("__AVX512F__", "__AVX512BF16__", "__AMX_TILE__", "__AMX_BF16__", f"EMULATED_{version}")
        more = [f"-I{EMULATED}", *(f"-D{name}" for name in names)]
    flags = (*(flag.replace("native", processor) for flag in building._FLAGS), *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_FLAGS", flags)
        return Kernels(building._made().library)


@dataclass(frozen=True)
class Frozen:
    """Kernels that have products with a frozen weight of a dtype."""

    compiled: Kernels
    dtype: torch.dtype


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def frozen(request: pytest.FixtureRequest) -> Frozen:
    """In fp32 those of AVX2 and nothing above it; in bf16 those of a matrix unit, this machine's if it has one."""
    if request.param == "fp32":
        return Frozen(kernels_of("x86-64-v3"), torch.float32)
    own = kernels_of("native")
    has = own.takes_frozen(torch.bfloat16, 32, 32)
    found = own if has else kernels_of("matrix unit")
    assert found.takes_frozen(torch.bfloat16, 32, 32)
    return Frozen(found, torch.bfloat16)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
}
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 2**-8}
DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["fp32", "bf16"])


def near(found: Tensor, exact: Tensor, dtype: torch.dtype, of: Tensor | None = None) -> bool:
    """Within rounding of the largest value, or of the largest of what was added up (`of`)."""
    largest = (exact if of is None else of).abs().max()
    return bool((found.double() - exact).abs().max() <= ROUNDING[dtype] * (largest + 1e-3))


@DTYPES
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("n", [1, 15, 4097, 70_001])
def test_activations(compiled: Kernels, name: str, dtype: torch.dtype, n: int) -> None:
    x = torch.linspace(-12, 12, n).to(dtype)
    grad = torch.linspace(2, -1, n).to(dtype)
    exact = x.double().requires_grad_()
    y = ACTIVATIONS[name](exact)
    (of_x,) = torch.autograd.grad(y, exact, grad.double())
    assert near(compiled.value(name, x), y.detach(), dtype)
    assert near(compiled.gradient(name, grad, x), of_x, dtype)
    new = compiled.value(name, x)
    assert compiled.value(name, x, in_place=True) is x
    assert torch.equal(x, new)


@DTYPES
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_not_a_number_stays_so(compiled: Kernels, name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, float("nan"), -2.0], dtype=dtype)
    one = torch.ones_like(x)
    assert compiled.value(name, x).isnan().tolist() == [False, True, False]
    assert compiled.gradient(name, one, x).isnan().tolist() == [False, True, False]
    assert compiled.gradient(name, x, one).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_values(compiled: Kernels, name: str) -> None:
    x = torch.tensor([-1e4, -200.0, 200.0, 1e4])
    assert compiled.value(name, x).tolist() == pytest.approx([0.0, 0.0, 200.0, 1e4], rel=1e-7, abs=1e-30)
    assert compiled.gradient(name, torch.ones(4), x).tolist() == pytest.approx(
        [0.0, 0.0, 1.0, 1.0], abs=1e-20
    )


NORMS = {
    "layer norm": {"centred": True, "added": 0.0, "twice": False},
    "without a bias": {"centred": True, "added": 0.0, "twice": False},
    "rms": {"centred": False, "added": 0.0, "twice": True},
    "rms and one": {"centred": False, "added": 1.0, "twice": False},
}


@DTYPES
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 31), (5, 32), (2, 33), (37, 384)])
def test_norms(compiled: Kernels, kind: str, dtype: torch.dtype, rows: int, width: int) -> None:
    form = NORMS[kind]
    generator = torch.Generator().manual_seed(rows + width)
    x, grad, beside = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(3))
    x += 3.0
    weight, bias = (torch.randn(width, generator=generator).to(dtype) for _ in range(2))
    exact = x.double().requires_grad_()
    off = exact.mean(1, keepdim=True) if form["centred"] else torch.zeros(rows, 1, dtype=torch.float64)
    root = ((exact - off).square().mean(1, keepdim=True) + 1e-5).rsqrt()
    wanted = (exact - off) * root * (weight.double() + form["added"])
    wanted = wanted + bias.double() if kind == "layer norm" else wanted
    (of_x,) = torch.autograd.grad(wanted, exact, grad.double())
    y, mean, inverse = compiled.norm(x, weight, bias if kind == "layer norm" else None, 1e-5, **form)
    assert near(y, wanted.detach(), dtype, wanted.detach() * (2 if form["twice"] else 1))
    assert (mean is None) == (not form["centred"])
    torch.testing.assert_close(inverse.double(), root.detach(), rtol=1e-4, atol=0)
    found = compiled.norm_gradient(grad, x, weight, mean, inverse, None, added=form["added"])
    added = compiled.norm_gradient(grad, x, weight, mean, inverse, beside, added=form["added"])
    of = (grad.double() * (weight.double() + form["added"]) * root.detach()).abs() * 4
    assert near(found, of_x, dtype, of)
    assert near(added, of_x + beside.double(), dtype, of + beside.double().abs())


def texts_of(
    lengths: list[int], heads: int, kv_heads: int, size: int, *, causal: bool, before: int | None
) -> Texts:
    first = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Texts(
        first, first, sum(lengths), max(lengths), max(lengths), heads, kv_heads, size, 0.4, causal, before
    )


def attention(q: Tensor, k: Tensor, v: Tensor, texts: Texts) -> Tensor:
    """(H, m, D), (K, n, D) twice -> (m, H D) as it is written."""
    times = texts.heads // texts.kv_heads
    k, v = k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)
    scores = q @ k.transpose(1, 2) * texts.scaling
    seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if texts.causal:
        seen = seen.tril()
        if texts.before is not None:
            seen = seen.triu(-texts.before)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)


def attended(qkv: Tensor, texts: Texts) -> Tensor:
    """The whole packed row."""
    parts = []
    for a, b in pairwise(texts.q_first.tolist()):
        heads = qkv[a:b].view(b - a, -1, texts.size).transpose(0, 1)
        parts.append(attention(*heads.split([texts.heads, texts.kv_heads, texts.kv_heads]), texts))
    return torch.cat(parts)


@DTYPES
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    shape=st.sampled_from(
        [(4, 4, 16), (4, 2, 8), (6, 1, 20), (1, 1, 64), (2, 2, 33), (2, 2, 32), (4, 2, 64)]
    ),
    sees=st.sampled_from([(False, None), (True, None), (True, 0), (True, 3), (True, 40)]),
    behind=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_attention(
    compiled: Kernels,
    dtype: torch.dtype,
    lengths: list[int],
    shape: tuple[int, int, int],
    sees: tuple[bool, int | None],
    behind: int,
    seed: int,
) -> None:
    heads, kv_heads, size = shape
    texts = texts_of(lengths, heads, kv_heads, size, causal=sees[0], before=sees[1])
    generator = torch.Generator().manual_seed(seed)
    T = texts.tokens
    qkv = torch.randn(T + behind, (heads + 2 * kv_heads) * size, generator=generator).to(dtype)
    grad = torch.randn(T + behind, heads * size, generator=generator).to(dtype)
    exact = qkv[:T].double().requires_grad_()
    y = attended(exact, texts)
    (of_qkv,) = torch.autograd.grad(y, exact, grad[:T].double())
    found, of = compiled.attend(qkv, texts), compiled.attend_gradient(qkv, grad, texts)
    assert near(found[:T], y.detach(), dtype)
    assert near(
        of[:T], of_qkv, dtype, of_qkv * (1 if dtype is torch.float32 else 2)
    )  # as far off as PyTorch's: 3
    assert not found[T:].any()
    assert not of[T:].any()


@DTYPES
@pytest.mark.parametrize(
    "sees", [(False, None), (True, None), (True, 0), (True, 31), (True, 32), (True, 100)]
)
@pytest.mark.parametrize("shape", [(2, 1, 32), (1, 1, 64), (1, 1, 96)])
def test_attention_of_longer_texts(
    compiled: Kernels, dtype: torch.dtype, shape: tuple[int, int, int], sees: tuple[bool, int | None]
) -> None:
    """Texts of one block of queries, just more, and several: each as it is alone, to the bit, and as it is written."""
    heads, kv_heads, size = shape
    lengths = [7, 8, 15, 16, 17, 32, 33, 48, 64, 65, 129, 200]
    texts = texts_of(lengths, heads, kv_heads, size, causal=sees[0], before=sees[1])
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(texts.tokens, (heads + 2 * kv_heads) * size, generator=generator).to(dtype)
    grad = torch.randn(texts.tokens, heads * size, generator=generator).to(dtype)
    found, of = compiled.attend(qkv, texts), compiled.attend_gradient(qkv, grad, texts)
    for a, b in pairwise(texts.q_first.tolist()):
        own = texts_of([b - a], heads, kv_heads, size, causal=sees[0], before=sees[1])
        assert torch.equal(found[a:b], compiled.attend(qkv[a:b].clone(), own))
        assert torch.equal(of[a:b], compiled.attend_gradient(qkv[a:b].clone(), grad[a:b].clone(), own))
        exact = qkv[a:b].double().requires_grad_()
        y = attended(exact, own)
        (of_qkv,) = torch.autograd.grad(y, exact, grad[a:b].double())
        assert near(found[a:b], y.detach(), dtype)
        assert near(of[a:b], of_qkv, dtype, of_qkv * (1 if dtype is torch.float32 else 2))


def test_attention_of_scores_far_apart(compiled: Kernels) -> None:
    """Exponentials that vanish, and rows of which one key takes all."""
    texts = texts_of([40], 1, 1, 32, causal=True, before=None)
    qkv = torch.randn(40, 96, generator=torch.Generator().manual_seed(2)) * 30
    for dtype in (torch.float32, torch.bfloat16):
        rows = qkv.to(dtype)
        exact = rows.double().requires_grad_()
        y = attended(exact, texts)
        (of_rows,) = torch.autograd.grad(y, exact, torch.ones_like(y))
        assert near(compiled.attend(rows, texts), y.detach(), dtype)
        of = compiled.attend_gradient(rows, torch.ones(40, 32, dtype=dtype), texts)
        assert near(of, of_rows, dtype, of_rows.abs() + rows.double().abs())


@DTYPES
@given(
    own=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    shape=st.sampled_from([(4, 4, 16), (4, 2, 8), (1, 1, 64), (2, 2, 33), (4, 2, 32)]),
    before=st.sampled_from([None, 0, 3, 30]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_attention_of_texts_that_begin_with_rows_of_others(
    compiled: Kernels,
    dtype: torch.dtype,
    own: list[int],
    shape: tuple[int, int, int],
    before: int | None,
    seed: int,
) -> None:
    """Each text is what any earlier one begins with, and rows of its own, of which there may be none."""
    heads, kv_heads, size = shape
    generator = torch.Generator().manual_seed(seed)
    paths: list[list[int]] = []
    for n in own:
        earlier = paths[int(torch.randint(len(paths), (), generator=generator))] if paths else [0]
        kept = earlier[: 1 + int(torch.randint(len(earlier), (), generator=generator))]
        at = 1 + sum(own[: len(paths)])
        paths.append([*kept, *range(at, at + n)])
    whole = texts_of([len(path) for path in paths], heads, kv_heads, size, causal=True, before=before)
    rows = 1 + sum(own)
    q_first = torch.tensor([1, *(1 + torch.tensor(own).cumsum(0)).tolist()], dtype=torch.int32)
    q_first[0] = 0  # the first text's own rows begin with the row that all texts begin with
    texts = replace(whole, q_first=q_first, row=torch.tensor([*chain(*paths)], dtype=torch.int32))
    qkv = torch.randn(rows + 2, (heads + 2 * kv_heads) * size, generator=generator).to(dtype)
    found = compiled.attend(qkv, texts)
    expected = attended(qkv[texts.row].double(), whole)
    for path, (first, end) in zip(paths, pairwise(whole.k_first.tolist()), strict=True):
        assert near(found[path[: end - first]], expected[first:end], dtype)
    assert not found[rows:].any()


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (6, 2, 20)])
def test_one_query_a_text(
    compiled: Kernels, dtype: torch.dtype, heads: int, kv_heads: int, size: int
) -> None:
    lengths = [1, 2, 30, 200]
    whole = texts_of(lengths, heads, kv_heads, size, causal=False, before=None)
    texts = Texts(
        torch.arange(5, dtype=torch.int32),
        whole.k_first,
        233,
        1,
        200,
        heads,
        kv_heads,
        size,
        0.4,
        causal=False,
    )
    torch.manual_seed(0)
    q = torch.randn(4, heads * size).to(dtype)
    kv = torch.randn(235, 2 * kv_heads * size).to(dtype)
    grad = torch.randn(4, heads * size).to(dtype)
    exact = q.double().requires_grad_(), kv.double().requires_grad_()
    parts = []
    for i, (a, b) in enumerate(pairwise(texts.k_first.tolist())):
        k, v = exact[1][a:b].view(b - a, -1, size).transpose(0, 1).split(kv_heads)
        parts.append(attention(exact[0][i].view(heads, 1, size), k, v, texts))
    y = torch.cat(parts)
    of_q, of_kv = torch.autograd.grad(y, exact, grad.double())
    found = compiled.read_gradient(q, kv, grad, texts)
    assert near(compiled.read(q, kv, texts), y.detach(), dtype)
    assert near(found[0], of_q, dtype)
    assert near(found[1], of_kv, dtype)
    assert not found[1][233:].any()


def lora(
    x: Tensor, y: Tensor, grad: Tensor, of_x: Tensor, parts: list[Part]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """y and of_x with what is added to them, and the gradients of the factors, in float64."""
    exact_x = x.double().requires_grad_()
    factors = [f.double().requires_grad_() for part in parts for f in (part.A, part.B)]
    exact = y.double()
    for part, A, B in zip(parts, factors[::2], factors[1::2], strict=True):
        added = part.scaling * (exact_x @ A.t()) @ B.t()
        exact = exact + nn.functional.pad(added, (part.start, exact.shape[1] - part.start - len(B)))
    of_exact, *of_factors = torch.autograd.grad(exact, [exact_x, *factors], grad.double())
    return exact.detach(), of_exact + of_x.double(), of_factors


@DTYPES
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 300),
    parts=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=3),
    gap=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_lora(
    compiled: Kernels,
    dtype: torch.dtype,
    rows: int,
    inputs: int,
    parts: list[tuple[int, int]],
    gap: int,
    seed: int,
) -> None:
    tiles = dtype is torch.bfloat16 and not any(
        [rows % 16, inputs % 64, *(outputs % 64 for outputs, _ in parts)]
    )
    check_lora(compiled, dtype, (rows, inputs), parts, gap, seed, torch.bfloat16 if tiles else torch.float32)


@pytest.mark.parametrize(
    ("rows", "inputs", "parts"),
    [
        (16, 64, [(64, 16)]),
        (32, 128, [(128, 1)]),
        (48, 64, [(64, 5), (128, 33)]),
        (272, 192, [(192, 16), (192, 16), (192, 16)]),
        (64, 576, [(64, 64), (192, 20)]),
    ],
)
def test_lora_in_the_shapes_of_tiles(
    compiled: Kernels, rows: int, inputs: int, parts: list[tuple[int, int]]
) -> None:
    """A matrix unit rounds the factors and what stands between them to bf16, as PyTorch's products do."""
    check_lora(compiled, torch.bfloat16, (rows, inputs), parts, 3, 0, torch.bfloat16)


def check_lora(
    compiled: Kernels,
    dtype: torch.dtype,
    shape: tuple[int, int],
    parts: list[tuple[int, int]],
    gap: int,
    seed: int,
    of_the_factors: torch.dtype,
) -> None:
    """Rows and inputs, (outputs, r) of each part, numbers between them -> results and gradients within rounding."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    (rows, inputs), given_parts, start = shape, [], gap
    for outputs, r in parts:
        given_parts.append(Part(random(r, inputs), random(outputs, r), start, 0.3 * r))
        start += outputs + gap
    x, y, of_x = random(rows, inputs).to(dtype), random(rows, start).to(dtype), random(rows, inputs).to(dtype)
    grad = random(rows, start).to(dtype)
    exact, of_exact, of_factors = lora(x, y, grad, of_x, given_parts)
    largest = lora(
        x.abs(), y.abs(), grad.abs(), of_x.abs(), [replace(p, A=p.A.abs(), B=p.B.abs()) for p in given_parts]
    )

    adapters = Adapters(given_parts)
    h = compiled.lora_forward(x, y, adapters)
    assert near(y, exact, dtype, largest[0])
    alone = of_x.clone()
    assert compiled.lora_backward(grad, None, None, alone, adapters) == []
    found = compiled.lora_backward(grad, x, h, of_x, adapters)
    assert near(of_x, of_exact, dtype, largest[1])
    assert torch.equal(alone, of_x)
    for of, exact_of, terms in zip(found, of_factors, largest[2], strict=True):
        assert near(of, exact_of, of_the_factors, terms)
    without = compiled.lora_backward(grad, x, h, None, adapters)
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "ranks"),
    [
        (32, 192, 1600, [16]),  # of three times 64 columns of the gradient a thread has two
        (48, 64, 224, [8, 8]),  # adapters that begin within a tile
        (16, 32, 32, []),
        (7, 64, 96, []),  # rows that fill no tile
        (48, 64, 64, [4]),
        (48, 64, 96, [4, 4, 4, 4]),  # adapters that begin within 16 outputs
        (39, 64, 64, [16]),
        (80, 96, 128, [8]),  # inputs that the adapter's tiles don't take
        (272, 192, 192, [16, 8, 40]),
        (32, 3072, 64, [33]),  # the sums of two halves
        (560, 1600, 64, [16]),  # rows in two shares
        (64, 3104, 32, []),  # 97 steps in three parts
    ],
)
def test_a_frozen_weight_with_its_adapters(
    frozen: Frozen, rows: int, inputs: int, outputs: int, ranks: list[int], transposed: bool
) -> None:
    tiled, dtype = frozen.compiled, frozen.dtype
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W, bias = random(outputs, inputs).to(dtype), random(outputs).to(dtype)
    x, residual = random(rows, inputs).to(dtype), random(rows, outputs).to(dtype)
    grad, beside = random(rows, outputs).to(dtype), random(rows, inputs).to(dtype)
    size = outputs // max(1, len(ranks))
    parts = [Part(random(r, inputs), random(size, r), i * size, 0.5) for i, r in enumerate(ranks)]
    given = W.t().contiguous() if transposed else W

    def exact(
        x: Tensor, W: Tensor, bias: Tensor, residual: Tensor, grad: Tensor, beside: Tensor
    ) -> list[Tensor]:
        """y, the gradient of x plus `beside`, and those of the factors."""
        y, of_x = x @ W.t() + bias + residual, grad @ W + beside
        if not parts:
            return [y, of_x]
        return [*(f := lora(x, y, grad, of_x, wide_parts))[:2], *f[2]]

    wide_parts = parts
    of = [t.double() for t in (x, W, bias, residual, grad, beside)]
    wanted = exact(*of)
    wide_parts = [replace(p, A=p.A.abs(), B=p.B.abs()) for p in parts]
    largest = exact(*(t.abs() for t in of))

    adapters = Adapters(parts)
    y, h = tiled.frozen_forward(x, tiled.frozen_tiles(given, transposed=transposed), bias, residual, adapters)
    of_x, factors = tiled.frozen_backward(
        grad, tiled.frozen_tiles(given, transposed=not transposed), beside, x if parts else None, h, adapters
    )
    assert (h is None) == (not parts)
    for found, exactly, terms in zip([y, of_x, *factors], wanted, largest, strict=True):
        assert near(found, exactly, dtype, terms)
    alone, _ = tiled.frozen_forward(x, tiled.frozen_tiles(given, transposed=transposed), None, None)
    assert near(alone, of[0] @ of[1].t(), dtype, of[0].abs() @ of[1].abs().t())


def test_the_number_of_rows_changes_no_row_of_a_frozen_product(frozen: Frozen) -> None:
    torch.manual_seed(0)
    tiled = frozen.compiled
    tiles = tiled.frozen_tiles(torch.randn(64, 3072).to(frozen.dtype), transposed=False)
    x = torch.randn(304, 3072).to(frozen.dtype)
    adapters = Adapters([Part(torch.randn(16, 3072), torch.randn(64, 16), 0, 1.0)])
    whole, _ = tiled.frozen_forward(x, tiles, None, None, adapters)
    assert torch.equal(tiled.frozen_forward(x[:48], tiles, None, None, adapters)[0], whole[:48])


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(48, 64, 224), (272, 3104, 96), (304, 192, 576), (912, 96, 96)]
)
def test_the_number_of_threads_changes_no_frozen_product(
    frozen: Frozen, rows: int, inputs: int, outputs: int
) -> None:
    """Threads have columns of their own, or with many rows rows: some have a block more than others, or none."""
    torch.manual_seed(1)
    tiled, dtype = frozen.compiled, frozen.dtype
    W = torch.randn(outputs, inputs).to(dtype)
    x, grad, residual = (torch.randn(rows, n).to(dtype) for n in (inputs, outputs, outputs))
    parts = [Part(torch.randn(16, inputs), torch.randn(outputs, 16), 0, 1.0)] if inputs % 64 == 0 else []
    runs = []
    with own_threads():
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            forward, back = (tiled.frozen_tiles(W, transposed=t) for t in (False, True))
            y, h = tiled.frozen_forward(x, forward, None, residual, Adapters(parts))
            of_x, factors = tiled.frozen_backward(grad, back, None, x if parts else None, h, Adapters(parts))
            runs.append([y, of_x, *factors])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


@DTYPES
def test_the_same_bits_again(compiled: Kernels, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    adapters = Adapters([Part(torch.randn(16, 700), torch.randn(900, 16), 0, 1.0)])
    x, grad = torch.randn(300, 700).to(dtype), torch.randn(300, 900).to(dtype)
    runs = []
    for _ in range(3):
        y = torch.zeros(300, 900, dtype=dtype)
        h = compiled.lora_forward(x, y, adapters)
        runs.append([y, h, *compiled.lora_backward(grad, x, h, None, adapters)])
        if compiled.takes_frozen(dtype, 64, 64):
            tiles = compiled.frozen_tiles(x[:64, :64].contiguous(), transposed=False)
            runs[-1].append(compiled.frozen_forward(grad[:, :64].contiguous(), tiles, None, None)[0])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
