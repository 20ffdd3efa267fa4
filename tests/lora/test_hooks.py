"""LoRA by forward hook: the base untouched, and the same numbers as by replacement and as PEFT."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.pytorch_utils import Conv1D

from veneer.errors import AdapterError, ConfigError, TargetError
from veneer.lora import (
    LoraConfig,
    adapter_parameters,
    adapter_state_dict,
    attach,
    detach,
    load_adapter_state_dict,
    peft_config_dict,
)
from veneer.lora.hooks import HookedLora, hook_lora

RECIPE = {"target_modules": ["c_attn"], "r": 2, "lora_alpha": 8, "layers_to_transform": (1, 2)}
EXTRAS = {"bias": "lora_only", "modules_to_save": ("score",)}


def gpt2(dropout: float = 0.0) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_positions=16, n_embd=32, n_layer=3, n_head=4, num_labels=2, pad_token_id=59,
        bos_token_id=59, eos_token_id=59, resid_pdrop=dropout, attn_pdrop=dropout, embd_pdrop=dropout,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config)


def batch(seed: int, texts: int = 8) -> dict[str, Tensor]:
    """Texts of 12 tokens whose label can be learnt: whether the first token is low."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 59, (texts, 12), generator=generator)
    return {"input_ids": ids, "labels": (ids[:, 0] < 30).long()}


def hooked_model(seed: int = 1) -> tuple[GPT2ForSequenceClassification, HookedLora]:
    model = gpt2()
    return model, hook_lora(model, **RECIPE, **EXTRAS, seed=seed)


def with_values(handle: HookedLora) -> HookedLora:
    """A handle whose B is not zero."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for pair in handle.pairs.values():
            pair.lora_B.normal_(0.0, 0.2, generator=generator)
    return handle


def by_peft(state: dict[str, Tensor]) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["c_attn"], layers_to_transform=[1, 2], bias="lora_only",
        modules_to_save=["score"], fan_in_fan_out=True, task_type="SEQ_CLS",
    )  # fmt: skip
    model = peft.get_peft_model(gpt2(), config)
    loaded = peft.set_peft_model_state_dict(model, state)
    assert not loaded.unexpected_keys
    return model


def peft_gradients(model: peft.PeftModel) -> dict[str, Tensor]:
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            named[name.replace(".default", "").replace("modules_to_save.", "")] = parameter.grad
    return named


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_ones_move_every_output_by_alpha_times_the_sum(alpha: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(20, 10))
    x = torch.randn(3, 10)
    before = model(x)
    handle = hook_lora(model, ["0"], r=1, lora_alpha=alpha)
    with torch.no_grad():
        for pair in handle.pairs.values():
            assert pair.lora_A.shape == (1, 10)
            assert pair.lora_B.shape == (20, 1)
            pair.lora_A.fill_(1.0)
            pair.lora_B.fill_(1.0)
    expected = alpha * x.sum(dim=1, keepdim=True).expand(3, 20)
    torch.testing.assert_close(model(x) - before, expected, atol=1e-5, rtol=0)  # fp32 sums
    handle.remove()
    assert torch.equal(model(x), before)


def test_nothing_of_the_base_is_replaced_and_everything_comes_back() -> None:
    model = gpt2()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    modules, values = list(model.modules()), copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        before = model(**batch(0)).logits
        handle = hook_lora(model, **RECIPE, **EXTRAS)
        torch.testing.assert_close(model(**batch(0)).logits, before, atol=0, rtol=0)  # B is zero
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert list(model.state_dict()) == list(values)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"score.weight", "transformer.h.1.attn.c_attn.bias", "transformer.h.2.attn.c_attn.bias"}
    optimizer = torch.optim.SGD(handle.parameters(), lr=1.0)
    model(**batch(0)).loss.backward()
    optimizer.step()
    assert not torch.equal(model.state_dict()["score.weight"], values["score.weight"])
    handle.remove()
    handle.remove()  # twice is once
    assert [p.requires_grad for p in model.parameters()] == flags
    torch.testing.assert_close(dict(model.state_dict()), dict(values), atol=0, rtol=0)
    assert not any(module._forward_hooks for module in model.modules())


def test_hook_replacement_and_peft_agree() -> None:
    model, handle = hooked_model()
    with_values(handle)
    state = handle.state_dict()
    replaced = gpt2()
    attach(replaced, handle.config, seed=9)
    load_adapter_state_dict(replaced, state)
    theirs = by_peft(state)
    losses = [m(**batch(3)).loss for m in (model, replaced, theirs)]
    for loss in losses:
        loss.backward()
    # fp32: the same products in another order
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(losses[0], losses[2], atol=1e-5, rtol=0)
    by_name = dict(adapter_parameters(replaced))
    by_their_name = peft_gradients(theirs)
    assert len(by_their_name) == len(handle.named_parameters()) == 7
    for key, ours in handle._by_peft_key().items():
        short = key.removeprefix("base_model.model.").removesuffix(".weight").replace(".base_layer", "")
        short = "score.weight" if short == "score" else short
        torch.testing.assert_close(ours.grad, by_name[short].grad, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.grad, by_their_name[key], atol=1e-5, rtol=0)


def test_the_three_have_one_curve_over_fifty_steps() -> None:
    model, handle = hooked_model(seed=4)
    replaced = gpt2()
    attach(replaced, handle.config, seed=4)  # the same seed draws the same A
    torch.testing.assert_close(adapter_state_dict(replaced), handle.state_dict(), atol=0, rtol=0)
    theirs = by_peft(handle.state_dict())
    runs = [
        (model, handle.parameters()),
        (replaced, [p for _, p in adapter_parameters(replaced)]),
        (theirs, [p for p in theirs.parameters() if p.requires_grad]),
    ]
    curves = [curve(*run) for run in runs]
    assert curves[0][-1] < 0.8 * curves[0][0]  # it learns, so that the curves say something
    # AdamW divides by the gradient's size: what differs by 1e-7 in a gradient grows over the steps
    torch.testing.assert_close(curves[1], curves[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(curves[2], curves[0], atol=1e-4, rtol=0)


def curve(model: nn.Module, parameters: list[nn.Parameter]) -> Tensor:
    model.train()  # without dropout
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    losses = []
    for step in range(50):
        optimizer.zero_grad()
        loss = model(**batch(step % 5)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_what_is_trained_by_hook_loads_as_an_adapter() -> None:
    model, handle = hooked_model()
    with_values(handle)
    state = handle.state_dict()
    with torch.no_grad():
        expected = model(**batch(7)).logits
        handle.remove()
        attach(model, handle.config)
        load_adapter_state_dict(model, state)
        torch.testing.assert_close(model(**batch(7)).logits, expected, atol=1e-5, rtol=0)
        written = peft_config_dict(handle.config, model, base_model_name_or_path="gpt2", task_type="SEQ_CLS")
        detach(model)
        assert written["bias"] == "lora_only"
        again = hook_lora(model, **RECIPE, **EXTRAS)
        again.load_state_dict(state)
        torch.testing.assert_close(model(**batch(7)).logits, expected, atol=0, rtol=0)


def test_the_counts_of_the_sst2_recipe() -> None:
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(GPT2Config(num_labels=2))
    handle = hook_lora(
        model, ["c_attn"], r=1, lora_alpha=4, layers_to_transform=(10, 11), bias="lora_only",
        modules_to_save=["score"],
    )  # fmt: skip
    assert handle.trainable == 12_288
    assert sum(p.numel() for p in handle.parameters()) == 12_288


def test_mistakes_are_named() -> None:
    model = gpt2()
    with pytest.raises(TargetError, match="c_atn"):
        hook_lora(model, ["c_atn"], r=1, lora_alpha=1)
    with pytest.raises(TargetError, match="wte is an embedding"):
        hook_lora(model, ["wte"], r=1, lora_alpha=1)
    with pytest.raises(ConfigError, match="r=0"):
        hook_lora(model, ["c_attn"], r=0, lora_alpha=1)
    with pytest.raises(ConfigError, match=r"score\.weight is torch\.bfloat16"):
        hook_lora(gpt2().to(torch.bfloat16), ["c_attn"], r=1, lora_alpha=1, modules_to_save=["score"])
    assert all(p.requires_grad for p in model.parameters())
    handle = hook_lora(model, ["c_attn"], r=1, lora_alpha=1)
    state = handle.state_dict()
    key = next(iter(state))
    with pytest.raises(AdapterError) as caught:
        handle.load_state_dict({**{k: v for k, v in state.items() if k != key}, "x": state[key]})
    assert len(caught.value.faults) == 2
    handle.remove()
    attach(model, LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(ConfigError, match="Detach"):
        hook_lora(model, ["c_attn"], r=1, lora_alpha=1)
