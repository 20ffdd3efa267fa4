"""A group that has run before against one that looks for the first time, after whatever may happen to its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from veneer.engine.linears import LinearGroup
from veneer.engine.native import choose_kernels, own_kernels, use_kernels
from veneer.lora import Int8Linear, Int8Weight, LoraConfig, attach, detach, merge, set_active

N = 64
CPU = torch.device("cpu")
HERE = choose_kernels("auto", CPU)
NAMES = ("q", "k", "v")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    with own_kernels():
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapted(**options: Any) -> Any:
    """Three layers in bf16 with two adapters of fp32, "default" active."""
    model: Any = nn.Module()
    for name in NAMES:
        setattr(model, name, nn.Linear(N, N))
    model.to(torch.bfloat16)
    for i, name in enumerate(("other", "default")):
        given = {"r": 8, "target_modules": NAMES} | (options if name == "default" else {})
        attach(model, LoraConfig(**given), name=name, seed=i)
        for each in NAMES:
            with torch.no_grad():
                model.get_submodule(each).adapters[name].lora_B.copy_(drawn(N, given["r"], seed=i))
    return model


def results(group: LinearGroup, columns: slice | None) -> list[Tensor]:
    """What the group computes in bf16: the output and all gradients."""
    joined = group.joined(torch.bfloat16, columns)
    x = drawn(48, N, seed=5).bfloat16()
    y, h = joined.forward(x)
    of_x, of_factors = joined.backward(drawn(*y.shape, seed=6).bfloat16(), x, h, need_x=True)
    return [t for t in (y, of_x, *of_factors) if t is not None]


def pair(model: Any, name: str = "k") -> Any:
    return model.get_submodule(name).adapters["default"]


def base(model: Any, name: str = "k") -> Any:
    return model.get_submodule(name).base_layer


def narrower(model: Any) -> None:
    """Another rank in the same place of memory."""
    p = pair(model)
    p.lora_A.data, p.lora_B.data = p.lora_A.data[:4], p.lora_B.data.view(-1)[: 4 * N].view(N, 4)


def half(model: Any) -> None:
    """Factors of bf16 in the same place of memory."""
    for factor in pair(model).factors():
        factor.data = (
            factor.data.view(-1).view(torch.bfloat16)[: factor.numel()].view(factor.shape).fill_(0.1)
        )


def given(module: Any, name: str, tensor: Tensor) -> None:
    setattr(module, name, nn.Parameter(tensor, requires_grad=getattr(module, name).requires_grad))


def in_int8(model: Any) -> None:
    set_active(model, None)
    for name in NAMES:
        held = Int8Weight.of(base(model, name).weight.detach())
        model.get_submodule(name).base_layer = Int8Linear(held, base(model, name).bias, transposed=False)
    set_active(model, "default")


def trained_unseen(model: Any) -> None:
    """A weight that is trained by a fused optimiser, which leaves no trace."""
    base(model).weight.requires_grad_(True)
    base(model).weight.data.mul_(2)


CHANGES: dict[str, Callable[[Any], object]] = {
    "another adapter": lambda m: set_active(m, "other"),
    "no adapter": lambda m: set_active(m, None),
    "merged": merge,
    "detached": lambda m: (detach(m), detach(m, "other")),
    "another layer": lambda m: setattr(m, "k", nn.Linear(N, N).bfloat16().requires_grad_(False)),
    "another layer below": lambda m: setattr(
        m.k, "base_layer", nn.Linear(N, N).bfloat16().requires_grad_(False)
    ),
    "another weight": lambda m: given(base(m), "weight", drawn(N, N).bfloat16()),
    "the weight's data": lambda m: setattr(base(m).weight, "data", drawn(N, N).bfloat16()),
    "the weight in place": lambda m: base(m).weight.mul_(2),
    "a trained weight": trained_unseen,
    "int8": in_int8,
    "another bias": lambda m: given(base(m), "bias", drawn(N).bfloat16()),
    "the bias's data": lambda m: setattr(base(m).bias, "data", drawn(N)),
    "the bias without a trace": lambda m: base(m).bias.data.add_(1),
    "no bias": lambda m: setattr(base(m), "bias", None),
    "another factor": lambda m: given(pair(m), "lora_A", drawn(8, N, seed=9)),
    "the factor's data": lambda m: setattr(pair(m).lora_B, "data", drawn(N, 8, seed=9)),
    "the factor without a trace": lambda m: pair(m).lora_B.data.add_(1),
    "another rank": narrower,
    "the factors' dtype": half,
    "a factor that is turned": lambda m: setattr(pair(m).lora_A, "data", pair(m).lora_A.data.view(N, 8).t()),
    "the scaling": lambda m: setattr(pair(m), "settings", replace(pair(m).settings, scaling=3.0)),
}


@pytest.mark.parametrize(
    "columns", [None, slice(0, 2 * N), slice(16, 3 * N)], ids=["all", "two layers", "cut"]
)
@pytest.mark.parametrize("change", CHANGES)
def test_what_happens_to_a_layer_counts_in_the_next_product(change: str, columns: slice | None) -> None:
    model = adapted()
    slots = [(model, name) for name in NAMES]
    group = LinearGroup(*slots)
    before = results(group, columns)
    assert all(torch.equal(a, b) for a, b in zip(before, results(group, columns), strict=True))
    with torch.no_grad():
        CHANGES[change](model)
    found, expected = results(group, columns), results(LinearGroup(*slots), columns)
    assert not torch.equal(found[0], before[0])
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_whether_a_factor_is_trained_counts_at_once() -> None:
    model = adapted()
    group = LinearGroup((model, "k"))
    x = drawn(48, N).bfloat16()
    for wanted in (True, False, True):
        for factor in pair(model).factors():
            factor.requires_grad_(wanted)
        assert group.joined(torch.bfloat16).trained == wanted
        y = group(x)
        assert y.requires_grad == wanted
        if wanted:
            y.float().sum().backward()  # type: ignore[no-untyped-call]
            assert pair(model).lora_A.grad is not None


def test_gradients_are_those_of_the_factors_that_are_there() -> None:
    """Also where others have the same memory, and where a part of them was used without gradients before."""
    model = adapted()
    group, columns = LinearGroup((model, "k")), slice(16, N)
    group.joined(torch.bfloat16)
    given(pair(model), "lora_A", pair(model).lora_A.data)
    for which in (None, columns):
        with torch.no_grad():
            group.joined(torch.bfloat16, columns)
        model.zero_grad()
        group(drawn(48, N).bfloat16(), columns=which).float().sum().backward()
        assert all(factor.grad is not None and factor.grad.any() for factor in pair(model).factors())


def test_kernels_that_are_not_wanted_any_more_are_left() -> None:
    model = adapted()
    group = LinearGroup((model, "k"))
    group.joined(torch.bfloat16)
    use_kernels(choose_kernels("pytorch", CPU))
    assert group.joined(torch.bfloat16).kernels is None


@pytest.mark.skipif(HERE.name != "compiled", reason=HERE.reason)
def test_a_product_is_handed_out_again_where_nothing_happened() -> None:
    """In training and in inference, whole and in parts; the dtype of the inputs is another product."""
    model = adapted()
    alone, group = LinearGroup((model, "k")), LinearGroup(*((model, name) for name in NAMES))
    first = alone.joined(torch.bfloat16)
    pair(model).lora_B.data.add_(1)  # a step of a fused optimiser
    assert alone.joined(torch.bfloat16) is first
    with torch.inference_mode():
        assert alone.joined(torch.bfloat16) is first
    for columns in (None, slice(0, N), slice(N, 3 * N), slice(16, N)):
        kept = group.joined(torch.bfloat16, columns)
        assert group.joined(torch.bfloat16, columns).adapters is kept.adapters
    for _ in range(2):  # fp32 takes copies of the factors, anew at each call
        assert alone.joined(torch.float32).kernels is None
    alone.forget_()
    assert alone.joined(torch.bfloat16) is not first


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("inside", [False, True], ids=["outer", "inner"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_on_a_layer_is_seen_while_it_is_there(hook: str, inside: bool) -> None:
    model = adapted()
    group = LinearGroup(*((model, name) for name in NAMES))
    assert group.ready()
    handle = HOOKS[hook](base(model, "v") if inside else model.v)
    assert not group.ready()
    handle.remove()
    assert group.ready()


def dropping(model: Any) -> None:
    pair(model).settings = replace(pair(model).settings, dropout=0.5)
    model.k.training = True


AGAINST: dict[str, Callable[[Any], object]] = {
    "a trained weight": lambda m: base(m).weight.requires_grad_(True),
    "a trained bias": lambda m: base(m).bias.requires_grad_(True),
    "dropout": dropping,
    "two adapters": lambda m: set_active(m, ("default", "other")),
    "one layer of int8": lambda m: setattr(
        m.k, "base_layer", Int8Linear(Int8Weight.of(drawn(N, N)), base(m).bias, transposed=False)
    ),
    "another kind of layer": lambda m: setattr(m, "k", nn.Bilinear(N, N, N)),
}


@pytest.mark.parametrize("change", AGAINST)
def test_what_a_group_does_not_compute_is_seen_at_once(change: str) -> None:
    model = adapted()
    group = LinearGroup(*((model, name) for name in NAMES))
    assert group.ready()
    group.joined(torch.bfloat16)
    AGAINST[change](model)
    assert not group.ready()
    with torch.no_grad():  # then what a base's parameters want does not matter
        assert group.ready() == change.startswith("a trained")


def test_dora_is_seen_at_once() -> None:
    model = adapted()
    attach(model, LoraConfig(r=4, target_modules=("k",), use_dora=True), name="turned", seed=0)
    group = LinearGroup((model, "k"))
    for name, ready in (("default", True), ("turned", False), ("other", True)):
        set_active(model, name)
        assert group.ready() == ready
