"""Exact numbers of parameters, against PEFT's and the published ones."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from small_models import FAMILIES, bert, gpt2
from torch import nn

from veneer.lora import LoraConfig, attach, count_parameters, detach, resolve_targets


def gpt2_small() -> nn.Module:
    """GPT-2 small with a head for two labels, without memory."""
    with torch.device("meta"):
        return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(num_labels=2))


RECIPES: list[tuple[dict[str, Any], int]] = [
    # SST-2 by LoRA on the last two blocks: A, B, two biases and the head; 12,288 in the lecture and with PEFT
    (
        {
            "r": 1,
            "lora_alpha": 4,
            "target_modules": ["c_attn"],
            "layers_to_transform": [10, 11],
            "bias": "lora_only",
            "modules_to_save": ["score"],
        },
        12_288,
    ),
    ({"r": 16, "target_modules": "all-linear", "modules_to_save": ["score"]}, 2_360_832),
    ({"r": 8, "target_modules": ["c_attn", "wte"]}, 703_112),
]


@pytest.mark.parametrize(("given", "wanted"), RECIPES, ids=["sst2-last-two", "all-linear", "embedding"])
def test_gpt2_small(given: dict[str, Any], wanted: int) -> None:
    theirs = peft.get_peft_model(gpt2_small(), peft.LoraConfig(**given))
    trainable, total = theirs.get_nb_trainable_parameters()
    ours = gpt2_small()
    predicted = resolve_targets(ours, LoraConfig(**given)).trainable
    count = attach(ours, LoraConfig(**given)).parameters
    assert count.trainable == predicted == trainable == wanted
    biases = 2 * 2304 if given.get("bias") else 0  # PEFT trains the base's own; ours are copies beside them
    assert count.total == total + biases
    assert count.frozen == count.total - count.trainable


def test_the_spam_recipe() -> None:
    """Separate query, key and value, r 16 on every linear layer and the head: 2,666,528."""
    with torch.device("meta"):
        block = {
            "q": (768, 768),
            "k": (768, 768),
            "v": (768, 768),
            "out": (768, 768),
            "up": (768, 3072),
            "down": (3072, 768),
        }
        model = nn.ModuleDict(
            {f"block_{i}_{name}": nn.Linear(*size) for i in range(12) for name, size in block.items()}
        )
        model["head"] = nn.Linear(768, 2)
    attach(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
    assert count_parameters(model).trainable == 2_666_528


@pytest.mark.parametrize("family", FAMILIES)
def test_small_models_as_peft_counts(family: str) -> None:
    given = {"target_modules": "all-linear", "bias": "all", "r": 3}
    theirs = peft.get_peft_model(FAMILIES[family](), peft.LoraConfig(**given))
    ours = FAMILIES[family]()
    attach(ours, LoraConfig(**given))
    assert count_parameters(ours).trainable == theirs.get_nb_trainable_parameters()[0]


def test_slices_count_less() -> None:
    model = gpt2()
    report = attach(model, LoraConfig(target_modules=["c_attn"], qkv_slices=["q", "v"], r=4))
    assert report.parameters.trainable == 3 * 2 * 4 * (16 + 16)
    assert report.resolution.trainable == report.parameters.trainable


def test_a_second_adapter_adds_to_the_total_and_nothing_stays_behind() -> None:
    model = bert()
    plain = count_parameters(model)
    first = attach(
        model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]), name="a"
    ).parameters
    second = attach(model, LoraConfig(target_modules=["key"], r=2), name="b").parameters
    assert first.total == plain.total + first.trainable
    assert second.total == first.total + second.trainable
    detach(model, "b")
    detach(model, "a")
    assert count_parameters(model) == plain
    assert str(first) == f"parameters: {first.trainable:,} trainable of {first.total:,} (10.34 %)"
