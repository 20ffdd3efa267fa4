"""Adapters combined on one model, against dense sums in float64 and against PEFT's own TIES and DARE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import peft.utils.merge_utils as theirs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import FAMILIES, bert, gpt2, logits, shaken_, snapshot
from torch import Tensor, nn
from torch.testing import assert_close

from veneer.errors import ConfigError
from veneer.lora import (
    Combined,
    LoraConfig,
    active_adapters,
    adapter_names,
    adapter_parameters,
    adapter_state_dict,
    attach,
    combine,
    merge,
    set_active,
)
from veneer.lora.init import generator_for
from veneer.lora.products import Product, concatenated, cut_dense, cut_pair, dare_drop, ties
from veneer.lora.state import require_adapter

EXACT = {"rtol": 1e-5, "atol": 1e-6}  # float64 sums stored in fp32
WEIGHTS = {"a": 0.7, "b": -0.3, "c": 1.5}

CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, dict[str, Any]]]] = {
    "linear": (
        bert,
        {
            "a": {"target_modules": ["query", "value"], "r": 3},
            "b": {"target_modules": ["query", "dense"], "r": 2, "lora_alpha": 16, "use_rslora": True},
            "c": {"target_modules": ["key"], "r": 5, "layers_to_transform": 1},
        },
    ),
    "conv1d-and-embedding": (
        gpt2,
        {
            "a": {"target_modules": ["c_attn", "wte"], "r": 3},
            "b": {"target_modules": ["c_attn"], "qkv_slices": ["q", "v"], "r": 2},
            "c": {
                "target_modules": ["c_attn", "wte"],
                "init_lora_weights": "pissa",
                "r": 2,
                "rank_pattern": {"wte": 4},
            },
        },
    ),
}


def adapted(case: str) -> nn.Module:
    make, configs = CASES[case]
    model = make()
    for i, (name, given_config) in enumerate(configs.items()):
        attach(model, LoraConfig(**given_config), name=name, seed=i)
        shaken_([parameter for _, parameter in adapter_parameters(model, name)], i)
    return model


def deltas(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Module -> scaling · B A of one adapter, (m, n) in float64."""
    found = {}
    for layer_name, layer in require_adapter(model, name).layers.items():
        pair = layer.pair(name)
        A, B = (factor.detach().double() for factor in pair.factors())  # type: ignore[union-attr]
        found[layer_name] = pair.settings.scaling * (B @ A)
    return found


def dense_sum(model: nn.Module, weights: dict[str, float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for layer, delta in deltas(model, name).items():
            total[layer] = total.get(layer, torch.zeros_like(delta)) + weight * delta
    return total


def error_of(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    lost = sum(float((found[layer] - wanted[layer]).square().sum()) for layer in wanted)
    return math.sqrt(lost / sum(float(D.square().sum()) for D in wanted.values()))


@pytest.mark.parametrize("case", CASES)
def test_concatenation_is_the_dense_sum(case: str) -> None:
    model = adapted(case)
    weights = snapshot(model)
    wanted = dense_sum(model, WEIGHTS)
    done = combine(model, WEIGHTS, name="sum")
    assert active_adapters(model) == ("sum",)
    assert adapter_names(model) == ("a", "b", "c", "sum")
    found = deltas(model, "sum")
    assert found.keys() == wanted.keys()
    for layer in wanted:
        assert_close(found[layer], wanted[layer], **EXACT)
    assert (done.error, set(done.errors.values())) == (0.0, {0.0})
    for key, tensor in weights.items():  # the summands and the base are as they were
        assert_close(model.state_dict()[key], tensor, rtol=0, atol=0)
    everywhere = [n for n, layer in require_adapter(model, "a").layers.items() if "b" in layer.adapters]
    both = sum(require_adapter(model, "a").layers[everywhere[0]].pair(n).rank for n in "ab")
    assert done.ranks[everywhere[0]] >= both


@pytest.mark.parametrize("case", CASES)
def test_the_sum_answers_as_the_adapters_together(case: str) -> None:
    model = adapted(case)
    combine(model, dict.fromkeys("abc", 1.0), name="sum")
    one = logits(model)
    set_active(model, ["a", "b", "c"])
    assert_close(one, logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("r", [1, 3, 100])
def test_svd_is_the_nearest_of_its_rank_and_says_how_far_off(case: str, r: int) -> None:
    model = adapted(case)
    wanted = dense_sum(model, WEIGHTS)
    done = combine(model, WEIGHTS, name="cut", method="svd", r=r)
    found = deltas(model, "cut")
    for layer, D in wanted.items():
        U, S, V_t = torch.linalg.svd(D, full_matrices=False)
        assert_close(found[layer], U[:, :r] * S[:r] @ V_t[:r], rtol=1e-4, atol=1e-5)
        assert done.ranks[layer] <= r
        assert done.errors[layer] == pytest.approx(float(S[r:].norm() / S.norm()), abs=1e-7)
    assert done.error == pytest.approx(error_of(found, wanted), abs=1e-6)
    assert (done.error < 1e-6) == (r == 100)


def test_ties_is_pefts_on_the_weighted_deltas() -> None:
    model = adapted("linear")
    found = combine(model, WEIGHTS, name="ties", method="ties", density=0.4, r=24)
    assert found.error < 1e-6  # the layers are 16 or 24 wide: rank 24 is whole
    for layer, D in deltas(model, "ties").items():
        given_deltas = [w * deltas(model, n)[layer] for n, w in WEIGHTS.items() if layer in deltas(model, n)]
        wanted = theirs.ties(given_deltas, torch.ones(len(given_deltas), dtype=torch.float64), 0.4)
        assert_close(D, wanted, **EXACT)


def test_ties_by_hand() -> None:
    """The paper's figure: one entry each of no conflict, a conflict, a trimmed redundancy, and all trimmed."""
    one, two = torch.tensor([[4.0, 3.0, -0.1, 0.2]]), torch.tensor([[2.0, -5.0, 0.3, 0.1]])
    assert_close(ties([one, two], 0.5), torch.tensor([[3.0, -5.0, 0.0, 0.0]]))
    assert_close(ties([one, torch.zeros(1, 4)], 1.0), one)  # no vote for nothing


def test_dare_is_pefts_with_the_same_draws() -> None:
    D = torch.randn(30, 20, dtype=torch.float64)
    got = dare_drop(D, 0.3, torch.Generator().manual_seed(5))
    torch.manual_seed(5)
    assert_close(got, theirs.prune(D, 0.3, method="random", rescale=True))


def test_dare_draws_by_seed_layer_and_adapter() -> None:
    model = adapted("linear")
    done = combine(model, WEIGHTS, name="x", method="dare", density=0.5, seed=4, r=24)
    assert done.error < 1e-6
    for layer, D in deltas(model, "x").items():
        wanted = torch.zeros_like(D)
        for name, weight in WEIGHTS.items():
            if layer in deltas(model, name):
                generator = generator_for(4, f"{layer}.{name}.dare")
                wanted += dare_drop(weight * deltas(model, name)[layer], 0.5, generator)
        assert_close(D, wanted, **EXACT)
    first = adapter_state_dict(model, "x")
    combine(model, dict(reversed(WEIGHTS.items())), name="again", method="dare", density=0.5, seed=4, r=24)
    for key, tensor in adapter_state_dict(model, "again").items():
        if "lora_A" in key:
            B = key.replace("lora_A", "lora_B")
            product = adapter_state_dict(model, "again")[B] @ tensor
            assert_close(product, first[B] @ first[key], rtol=1e-4, atol=1e-5)
    combine(model, WEIGHTS, name="other", method="dare", density=0.5, seed=5, r=24)
    layer = next(iter(done.ranks))
    assert not torch.allclose(deltas(model, "other")[layer], deltas(model, "x")[layer], atol=1e-3)


def test_dare_is_the_sum_on_average() -> None:
    D = torch.ones(4, 4, dtype=torch.float64)
    mean = torch.stack([dare_drop(D, 0.25, generator_for(i, "x")) for i in range(4000)]).mean(0)
    assert_close(mean, D, rtol=0, atol=0.15)  # standard error sqrt(3 / 4000) = 0.027
    assert_close(dare_drop(D, 1.0, generator_for(0, "x")), D)


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_the_default_rank_is_the_sum_of_the_ranks(method: Any) -> None:
    model = adapted("linear")
    done = combine(model, {"a": 1.0, "b": 1.0}, name="x", method=method, density=0.5)
    query = "bert.encoder.layer.0.attention.self.query"
    assert done.ranks[query] == 5
    assert 0.0 < done.error < 1.0


def test_biases_are_summed_as_changes() -> None:
    model = bert()
    before = model.bert.encoder.layer[0].attention.self.query.bias.detach().double().clone()
    for i, name in enumerate("ab"):
        attach(model, LoraConfig(target_modules=["query"], bias="lora_only"), name=name, seed=i)
        shaken_([parameter for _, parameter in adapter_parameters(model, name)], i)
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias"
    a, b = (adapter_state_dict(model, name)[key].double() for name in "ab")
    done = combine(model, {"a": 0.5, "b": 2.0})
    assert done.config.bias == "lora_only"
    wanted = before + 0.5 * (a - before) + 2.0 * (b - before)
    assert_close(adapter_state_dict(model, "combined")[key].double(), wanted, **EXACT)


def with_heads(family: str = "bert", **second: Any) -> nn.Module:
    model = FAMILIES[family]()
    for i, name in enumerate("ab"):
        head = {"modules_to_save": ["classifier"]} | (second if name == "b" else {})
        attach(model, LoraConfig(target_modules=["query"], **head), name=name, seed=i)
        shaken_([parameter for _, parameter in adapter_parameters(model, name)], i)
    return model


HEAD = "base_model.model.classifier.weight"


def test_heads_that_differ_are_not_summed_unless_asked_for() -> None:
    model = with_heads()
    a, b = (adapter_state_dict(model, name)[HEAD] for name in "ab")
    with pytest.raises(
        ConfigError, match=r"classifier was trained in 'a' and in 'b', and differs.*heads='mean'"
    ):
        combine(model, {"a": 0.7, "b": 0.3})
    assert adapter_names(model) == ("a", "b")
    combine(model, {"a": 3, "b": 1}, heads="mean", name="mean")
    assert_close(adapter_state_dict(model, "mean")[HEAD], 0.75 * a + 0.25 * b, **EXACT)
    combine(model, {"a": 0.7, "b": 0.3}, heads="b", name="taken")
    assert_close(adapter_state_dict(model, "taken")[HEAD], b, rtol=0, atol=0)
    combine(model, {"taken": 0.5, "b": 0.5}, name="same")
    assert_close(adapter_state_dict(model, "same")[HEAD], b, rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"sum up to 0, so that there is no weighted mean"):
        combine(model, {"a": 1, "b": -1}, heads="mean", name="none")
    with pytest.raises(ConfigError, match=r"heads='c' is not known.*'a', 'b'"):
        combine(model, {"a": 1, "b": 1}, heads="c", name="none")


def test_heads_of_other_shapes_are_refused() -> None:
    model = with_heads()
    set_active(model, "a")
    require_adapter(model, "b").saved[0].copy = nn.Linear(16, 5)
    for heads in ("same", "mean", "a"):
        with pytest.raises(
            ConfigError, match=r"classifier.bias is \(3,\) in 'a' and \(5,\) in 'b'.*other labels"
        ):
            combine(model, {"a": 1, "b": 1}, heads=heads)


def test_an_adapter_without_the_head() -> None:
    model = with_heads(modules_to_save=None)
    a = adapter_state_dict(model, "a")[HEAD]
    combine(model, {"a": 1, "b": 1}, name="one")
    assert_close(adapter_state_dict(model, "one")[HEAD], a, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="not saved by every one"):
        combine(model, {"a": 1, "b": 1}, heads="mean", name="x")
    with pytest.raises(ConfigError, match="'b': this adapter has no classifier of its own"):
        combine(model, {"a": 1, "b": 1}, heads="b", name="x")


@pytest.mark.parametrize(
    ("given_options", "says"),
    [
        ({"method": "cat"}, r"method='cat' is not known.*concat, svd, ties, dare.*'concat'"),
        ({"method": "svd"}, "method='svd' needs a rank"),
        ({"r": 4}, "r=4 goes with method='svd'"),
        ({"method": "svd", "r": 0}, "r=0 can't be used"),
        ({"method": "ties"}, "method='ties' needs density"),
        ({"density": 0.5}, "density=0.5 goes with method='ties' or 'dare', not with 'concat'"),
        ({"method": "dare", "density": 0.0}, "density=0.0 can't be used"),
        ({"weights": {"a": math.nan}}, "can't be used: expected finite"),
        ({"weights": {"a": 0.0, "b": 0.0}}, "at least one of them not 0"),
        ({"weights": {}}, "at least one of them not 0"),
        ({"weights": {"a": 1.0, "bb": 1.0}}, "No adapter 'bb' is attached.*'b'"),
        ({"name": "a"}, "'a' is attached already"),
    ],
    ids=str,
)
def test_what_cannot_be_combined(given_options: dict[str, Any], says: str) -> None:
    model = adapted("linear")
    with pytest.raises(ConfigError, match=says):
        combine(model, given_options.pop("weights", WEIGHTS), **given_options)
    assert adapter_names(model) == ("a", "b", "c")


def test_dora_and_merged_models_are_refused() -> None:
    model = bert()
    attach(model, LoraConfig(target_modules=["query"]), name="a", seed=0)
    attach(model, LoraConfig(target_modules=["query"], use_dora=True), name="b", seed=0)
    with pytest.raises(ConfigError, match=r"'b': a DoRA adapter rescales.*Merge it"):
        combine(model, {"a": 1, "b": 1})
    merge(model, "a")
    with pytest.raises(ConfigError, match="'a' merged into its weights"):
        combine(model, {"a": 2})


def test_a_report_of_what_was_made() -> None:
    model = adapted("linear")
    done = combine(model, {"a": 0.5}, method="svd", r=2)
    assert isinstance(done, Combined)
    assert (done.name, done.method, done.weights) == ("combined", "svd", {"a": 0.5})
    assert done.config == require_adapter(model, "combined").config
    assert {
        layer.pair("combined").settings.scaling
        for layer in require_adapter(model, "combined").layers.values()
    } == {1.0}


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 8),
    m=st.integers(1, 8),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    cut=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_two_ways_to_cut_are_one(n: int, m: int, ranks: list[int], cut: int, seed: int) -> None:
    """Through the small factors or through the dense sum: the same product, norm and loss; also above full rank."""
    g = torch.Generator().manual_seed(seed)
    products = [
        Product(torch.randn(r, n, generator=g), torch.randn(m, r, generator=g), 0.5, w - 1.5)
        for w, r in enumerate(ranks)
    ]
    A, B = concatenated(products)
    D = sum(p.weight * p.dense() for p in products)
    assert isinstance(D, Tensor)
    assert_close(B @ A, D, rtol=1e-12, atol=1e-12)
    small, large = cut_pair(A, B, cut), cut_dense(D, cut)
    assert small.A.shape[0] == small.B.shape[1] <= cut
    assert small.norm == pytest.approx(large.norm, abs=1e-10)
    assert small.lost == pytest.approx(large.lost, abs=1e-10)
    assert float((D - small.B @ small.A).norm()) == pytest.approx(small.lost, abs=1e-10)
    S = torch.linalg.svdvals(D)
    if cut >= len(S) or S[cut - 1] - S[cut] > 1e-3:  # else the nearest is not unique
        assert_close(small.B @ small.A, large.B @ large.A, rtol=1e-6, atol=1e-8)
