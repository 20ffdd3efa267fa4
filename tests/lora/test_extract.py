"""Adapters out of two full models, held against numpy's decomposition and dense recomputation in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from veneer.errors import BaseError, ConfigError, TargetError
from veneer.lora import attach, disabled, load_adapter_state_dict
from veneer.lora.difference import difference
from veneer.lora.extract import adapter_of, extract_lora


class Small(nn.Module):
    """An embedding, two linear layers, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 12)
        self.first = nn.Linear(12, 20)
        self.norm = nn.LayerNorm(20)
        self.second = nn.Linear(20, 9, bias=False)
        self.head = nn.Linear(9, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.first(self.words(ids))))
        return self.head(self.second(x).mean(1))


@pytest.fixture
def base() -> Small:
    torch.manual_seed(0)
    return Small()


def tuned_by(base: nn.Module, changes: dict[str, Tensor]) -> nn.Module:
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name, change in changes.items():
            tuned.get_parameter(name).add_(change)
    return tuned


def of_rank(r: int, m: int, n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(m, r, generator=generator) @ torch.randn(r, n, generator=generator)


IDS = torch.arange(24).view(4, 6)


def test_a_difference_of_known_rank_is_recovered(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": of_rank(3, 20, 12), "second.weight": of_rank(2, 9, 20)})
    extracted = extract_lora(base, tuned, 3)
    assert sorted(extracted.pairs) == ["first", "second"]
    for name, (A, B) in extracted.pairs.items():
        D = tuned.get_parameter(f"{name}.weight") - base.get_parameter(f"{name}.weight")
        torch.testing.assert_close(B @ A, D, atol=1e-5, rtol=0)  # fp32 factors
        # both carry √S: their Gram matrices are the same diagonal
        torch.testing.assert_close(A @ A.t(), B.t() @ B, atol=1e-5, rtol=1e-5)
    # the fp32 weights' own rounding: the difference is of rank 3 only to about 1e-7
    assert extracted.error < 1e-6
    assert extracted.unrepresented == ()


def test_the_attached_adapter_answers_as_the_tuned_model(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": of_rank(3, 20, 12), "head.weight": of_rank(1, 3, 9)})
    extracted = extract_lora(base, tuned, 3)
    with torch.no_grad():
        before, expected = base(IDS), tuned(IDS)
        attach(base, extracted.config)
        load_adapter_state_dict(base, extracted.state_dict())
        torch.testing.assert_close(base(IDS), expected, atol=1e-5, rtol=0)  # fp32 factors
        with disabled(base):
            assert torch.equal(base(IDS), before)
    assert (expected - before).abs().max() > 0.01


def test_conv1d_a_head_kept_whole_and_peft_as_the_reader() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    base = GPT2ForSequenceClassification(config).eval()
    tuned = tuned_by(
        base,
        {
            "transformer.h.0.attn.c_attn.weight": of_rank(2, 16, 48),
            "transformer.h.1.attn.c_proj.weight": of_rank(
                2, 16, 16
            ),  # square: only the type tells the layout
            "score.weight": torch.ones(3, 16),
        },
    )
    extracted = extract_lora(base, tuned, 2, modules_to_save=["score"])
    assert set(extracted.saved) == {"score.weight"}
    A, B = extracted.pairs["transformer.h.0.attn.c_attn"]
    assert (A.shape, B.shape) == ((2, 16), (48, 2))
    theirs = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(
            r=2,
            lora_alpha=2,
            target_modules=list(extracted.pairs),
            modules_to_save=["score"],
            fan_in_fan_out=True,
            task_type="SEQ_CLS",
        ),
    ).eval()
    loaded = peft.set_peft_model_state_dict(theirs, extracted.state_dict())
    assert loaded.unexpected_keys == []
    ids = torch.arange(1, 13).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, tuned(ids).logits, atol=1e-5, rtol=0)  # fp32 factors
        attach(base, extracted.config)
        load_adapter_state_dict(base, extracted.state_dict())
        torch.testing.assert_close(base(ids).logits, tuned(ids).logits, atol=1e-5, rtol=0)


def test_embeddings_when_asked_for(base: Small) -> None:
    tuned = tuned_by(base, {"words.weight": of_rank(2, 30, 12)})
    extracted = extract_lora(base, tuned, 2, embeddings=True)
    assert {key: tuple(t.shape) for key, t in extracted.state_dict().items()} == {
        "base_model.model.words.lora_embedding_A": (2, 30),
        "base_model.model.words.lora_embedding_B": (12, 2),
    }
    with torch.no_grad():
        expected = tuned(IDS)
        attach(base, extracted.config)
        load_adapter_state_dict(base, extracted.state_dict())
        torch.testing.assert_close(base(IDS), expected, atol=1e-5, rtol=0)  # fp32 factors


def test_singular_values_and_errors_are_numpy_s(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": torch.randn(20, 12), "second.weight": 0.1 * torch.randn(9, 20)})
    found = difference(base, tuned)
    squared, whole = 0.0, 0.0
    for layer in found.layers:
        old, new = (m.get_parameter(f"{layer.name}.weight").detach().double().numpy() for m in (base, tuned))
        U, S, V_t = np.linalg.svd(new - old, full_matrices=False)
        # float64 on both sides
        np.testing.assert_allclose(layer.singular_values.numpy(), S, rtol=1e-10)
        for r in (1, 4, 9):
            dense = np.linalg.norm(new - old - U[:, :r] * S[:r] @ V_t[:r]) / np.linalg.norm(new - old)
            assert layer.error(r) == pytest.approx(dense, rel=1e-9, abs=1e-12)
            A, B = layer.pair(r)
            ours = np.linalg.norm(new - old - (B.double() @ A.double()).numpy()) / np.linalg.norm(new - old)
            assert ours == pytest.approx(dense, rel=1e-5, abs=1e-6)  # the pair is stored in fp32
        squared += np.sum(S[4:] ** 2)
        whole += np.sum(S**2)
    assert found.error(4) == pytest.approx(math.sqrt(squared / whole), rel=1e-10)
    assert found.errors([1, 4])["first"] == [found.layers[0].error(1), found.layers[0].error(4)]


def test_no_other_pair_of_that_rank_is_nearer(base: Small) -> None:
    """Eckart-Young: gradient descent on A and B from a random start comes near the bound and never below."""
    D = torch.randn(20, 12, generator=torch.Generator().manual_seed(3))
    layer = difference(base, tuned_by(base, {"first.weight": D})).layers[0]
    torch.manual_seed(0)
    A, B = (torch.randn(*shape, requires_grad=True) for shape in ((3, 12), (20, 3)))
    optimizer = torch.optim.Adam([A, B], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (D - B @ A).square().sum()
        loss.backward()
        optimizer.step()
    reached = float(loss.detach())
    assert layer.squared_error(3) * (1 - 1e-5) <= reached <= layer.squared_error(3) * 1.01  # 1 %: 400 steps


def test_the_lowest_rank_for_an_error_is_the_lowest(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": torch.randn(20, 12), "second.weight": 0.2 * of_rank(2, 9, 20)})
    found = difference(base, tuned)
    for wanted in (0.9, 0.5, 0.2, 0.01):
        r = found.lowest_r(wanted)
        assert found.error(r) <= wanted
        assert r == 1 or found.error(r - 1) > wanted
        for layer in found.layers:
            r = found.lowest_ranks(wanted)[layer.name]
            assert layer.error(r) <= wanted
            assert r == 1 or layer.error(r - 1) > wanted
    assert found.lowest_ranks(0.01)["second"] == 2


def test_a_rank_for_each_layer_becomes_a_rank_pattern(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": torch.randn(20, 12), "second.weight": of_rank(2, 9, 20)})
    found = difference(base, tuned)
    extracted = adapter_of(found, found.lowest_ranks(1e-5))
    assert (extracted.config.r, extracted.config.rank_pattern) == (12, {"second": 2})
    with torch.no_grad():
        attach(base, extracted.config)
        load_adapter_state_dict(base, extracted.state_dict())
        torch.testing.assert_close(base(IDS), tuned(IDS), atol=1e-4, rtol=0)  # an error of 1e-5 was asked for


def test_a_layer_smaller_than_r_has_its_full_rank(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": torch.randn(20, 12), "head.weight": torch.randn(3, 9)})
    extracted = extract_lora(base, tuned, 8)
    assert extracted.config.rank_pattern == extracted.config.alpha_pattern == {"head": 3}
    assert extracted.errors["head"] == 0.0
    attach(base, extracted.config)
    load_adapter_state_dict(base, extracted.state_dict())


def test_what_no_pair_carries_is_listed_with_its_size(base: Small) -> None:
    tuned = tuned_by(
        base,
        {
            "first.weight": torch.randn(20, 12),
            "first.bias": torch.full((20,), 0.5),
            "norm.weight": torch.full((20,), 0.1),
            "words.weight": torch.ones(30, 12),
        },
    )
    extracted = extract_lora(base, tuned, 2)
    sizes = {each.name: each.norm for each in extracted.unrepresented}
    assert sizes == pytest.approx(  # fp32 weights
        {"words.weight": 360**0.5, "first.bias": 0.5 * 20**0.5, "norm.weight": 0.1 * 20**0.5}, rel=1e-5
    )
    reasons = {each.name: each.reason for each in extracted.unrepresented}
    assert "embeddings=False" in reasons["words.weight"]
    assert set(difference(base, tuned).unchanged) == {
        "norm.bias",
        "second.weight",
        "head.weight",
        "head.bias",
    }


def test_the_randomized_method_finds_what_is_large() -> None:
    base, tuned = nn.Sequential(nn.Linear(80, 90)), nn.Sequential(nn.Linear(80, 90))
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        tuned[0].weight.add_(of_rank(6, 90, 80)).add_(1e-3 * torch.randn(90, 80))
    exact, randomized = (
        difference(base, tuned, max_r=6, method=method).layers[0] for method in ("exact", "randomized")
    )
    assert len(randomized.singular_values) == 6
    # a gap of more than 100 below the sixth value, four iterations
    torch.testing.assert_close(randomized.singular_values, exact.singular_values[:6], rtol=1e-8, atol=0)
    assert randomized.error(6) == pytest.approx(exact.error(6), rel=1e-6)
    with pytest.raises(ConfigError, match="6 singular values were computed"):
        randomized.error(7)
    with pytest.raises(ConfigError, match="6 singular vectors were kept"):
        exact.pair(7)


def test_the_randomized_method_gives_the_same_twice_and_leaves_torch_s_state() -> None:
    base, tuned = nn.Sequential(nn.Linear(60, 60)), nn.Sequential(nn.Linear(60, 60))
    state = torch.random.get_rng_state()
    once, again = (difference(base, tuned, max_r=2, method="randomized").layers[0] for _ in range(2))
    assert torch.equal(once.U, again.U)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_state_dict_without_the_tied_copy_is_enough() -> None:
    """safetensors files leave out a tensor that is tied to another."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 6)
            self.out = nn.Linear(6, 10, bias=False)
            self.out.weight = self.words.weight

    base, tuned = Tied(), Tied()
    state = tuned.state_dict()
    del state["out.weight"]
    found = difference(base, state)
    assert [layer.name for layer in found.layers] == ["out"]
    assert [each.name for each in found.unrepresented] == ["words.weight"]


def test_neither_model_is_changed(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": torch.randn(20, 12)})
    before = [{k: t.clone() for k, t in m.state_dict().items()} for m in (base, tuned)]
    extract_lora(base, tuned, 2, modules_to_save=["head"])
    for model, state in zip((base, tuned), before, strict=True):
        assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_every_fault_of_a_pair_of_models_is_listed(base: Small) -> None:
    state = dict(base.state_dict())
    del state["norm.bias"]
    state["head.weight"] = torch.zeros(5, 9)
    state["second.weight"] = torch.full((9, 20), torch.nan)
    state["pooler.weight"] = torch.zeros(2, 2)
    with pytest.raises(BaseError) as caught:
        difference(base, state, modules_to_save=["score"])
    assert set(str(caught.value).splitlines()[1:]) == {
        "  - modules_to_save names 'score', which is not in the tuned model",
        "  - norm.bias is missing from the tuned model",
        "  - head.weight has shape (5, 9); the base's has (3, 9)",
        "  - second.weight holds values that are not finite",
        "  - pooler.weight is not in the base",
    }


def test_a_replaced_head_may_have_another_shape(base: Small) -> None:
    tuned = tuned_by(base, {"first.weight": torch.randn(20, 12)})
    tuned.head = nn.Linear(9, 5)
    extracted = extract_lora(base, tuned, 2, modules_to_save=["head"])
    assert extracted.saved["head.weight"].shape == (5, 9)
    assert "base_model.model.head.bias" in extracted.state_dict()


def test_two_equal_models_give_nothing_to_extract(base: Small) -> None:
    assert difference(base, copy.deepcopy(base)).error(4) == 0.0
    with pytest.raises(TargetError, match="nothing to extract"):
        extract_lora(base, copy.deepcopy(base), 4)


def test_ranks_and_errors_that_can_t_be_are_refused(base: Small) -> None:
    found = difference(base, tuned_by(base, {"first.weight": torch.randn(20, 12)}))
    with pytest.raises(ConfigError, match="rank 0"):
        adapter_of(found, 0)
    with pytest.raises(ConfigError, match="first is given the rank None"):
        adapter_of(found, {"other": 2})
    with pytest.raises(ConfigError, match="from 0 to 1"):
        found.lowest_r(5)
    with pytest.raises(ConfigError, match="needs a number"):
        difference(base, base, method="randomized")


def test_the_extracted_adapter_keeps_the_accuracy_of_full_fine_tuning(base: Small) -> None:
    """Three classes of texts, learned in full: half the words of a text come from its class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (300,), generator=generator)
    own = torch.randint(10, (300, 6), generator=generator) + 10 * labels[:, None]
    ids = torch.where(torch.rand(300, 6, generator=generator) < 0.5, own, own.flip(0))

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model(ids).argmax(-1) == labels).float().mean().item()

    tuned = copy.deepcopy(base)
    for parameter in (*tuned.words.parameters(), *tuned.norm.parameters(), tuned.first.bias, tuned.head.bias):
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(tuned(ids), labels).backward()
        optimizer.step()
    before, full = accuracy(base), accuracy(tuned)
    assert full > before + 0.2
    found = difference(base, tuned)
    extracted = adapter_of(found, found.lowest_r(0.1))
    assert extracted.error <= 0.1
    attach(base, extracted.config)
    load_adapter_state_dict(base, extracted.state_dict())
    assert accuracy(base) >= full - 0.02  # 10 % of the difference is left out: at most 2 points
