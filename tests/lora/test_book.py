"""The book's names: its formula written out as the oracle, and how its matrices map to LoRA's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from veneer.errors import ConfigError
from veneer.lora import LoraConfig, attach, count_parameters, load_adapter_state_dict
from veneer.lora.book import LinearWithLoRA, LoRALayer, replace_linear_with_lora
from veneer.models.gpt import GPT, SIZES


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 16), nn.GELU(), nn.Sequential(nn.Linear(16, 8, bias=False)), nn.Linear(8, 3)
    )


@pytest.mark.parametrize(("scaling", "factor"), [("alpha", 6.0), ("alpha/r", 1.5)])
def test_the_formula(scaling, factor: float) -> None:
    torch.manual_seed(0)
    layer = LoRALayer(10, 7, rank=4, alpha=6.0, scaling=scaling)
    assert (layer.A.shape, layer.B.shape) == ((10, 4), (4, 7))
    assert not layer.B.any()
    nn.init.normal_(layer.B)
    x = torch.randn(5, 10)
    expected = factor * (x.double() @ layer.A.double() @ layer.B.double())
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)  # fp32 against float64
    linear = nn.Linear(10, 7)
    wrapped = LinearWithLoRA(linear, 4, 6.0, scaling=scaling)
    wrapped.lora.load_state_dict(layer.state_dict())
    torch.testing.assert_close(wrapped(x), linear(x) + layer(x), atol=1e-5, rtol=1e-5)


def test_a_starts_as_the_book_draws_it() -> None:
    torch.manual_seed(0)
    A = LoRALayer(768, 8, rank=16, alpha=1).A
    assert A.abs().max() <= 0.25  # 1 / sqrt(rank)
    torch.testing.assert_close(A.std(), torch.tensor(0.25 / 3**0.5), atol=0.005, rtol=0)  # 12,288 draws


def test_wrapping_changes_nothing_at_first_and_maps_to_attach() -> None:
    model, x = small(), torch.randn(4, 12)
    before = model(x)
    replace_linear_with_lora(model, rank=2, alpha=3.0)
    torch.testing.assert_close(
        model(x), before, atol=1e-6, rtol=1e-6
    )  # the bias is added in the same product
    layers = {"0": model[0], "2.0": model[2][0], "3": model[3]}
    assert all(isinstance(layer, LinearWithLoRA) for layer in layers.values())
    state = {}
    for name, layer in layers.items():
        nn.init.normal_(layer.lora.B)
        A, B = layer.lora.factors()
        state |= {f"base_model.model.{name}.lora_A.weight": A, f"base_model.model.{name}.lora_B.weight": B}
    ours = small()
    attach(ours, LoraConfig(r=2, lora_alpha=3.0 * 2, target_modules=list(layers)))
    load_adapter_state_dict(ours, state)
    torch.testing.assert_close(model(x), ours(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="already"):
        replace_linear_with_lora(model, rank=2, alpha=3.0)


def test_the_counts_of_the_spam_recipe() -> None:
    with torch.device("meta"):
        model = GPT(SIZES["124M"])
        model.set_classification_head(2)
        assert count_parameters(model).trainable == 124_441_346
        model.requires_grad_(False)
        assert count_parameters(model).trainable == 0
        replace_linear_with_lora(model, rank=16, alpha=16)
    assert count_parameters(model).trainable == 2_666_528


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="rank=0"):
        LoRALayer(3, 3, rank=0, alpha=1)
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        replace_linear_with_lora(nn.Sequential(nn.ReLU()), 2, 2)


def test_a_shared_layer_is_wrapped_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared)])
    replace_linear_with_lora(model, 1, 1)
    assert model[0][0] is model[1][0]
