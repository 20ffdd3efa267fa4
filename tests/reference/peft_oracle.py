"""LoRA by PEFT, padded, as the oracle of LoRA by us, packed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import peft
import torch

from reference.families import Family, Result, differences, ours, padded_oracle, targets_of, texts_of
from veneer.engine import Runner
from veneer.lora import LoraConfig, attach, load_adapter_state_dict
from veneer.models.heads import head_modules, native_pooling

KINDS = ("BERT", "GPT-2", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")
"""A family of each kind: encoder, decoder with Conv1D, decoder with grouped queries and what its relatives have."""


def compare_with_peft(
    family: Family, lengths: Sequence[int], texts: Sequence[np.ndarray] | None = None
) -> tuple[float, float]:
    """Loss and gradients of A, B and head: `families.differences` of ours, packed, and PEFT's, padded.

    `texts` of these lengths; None: random ones.
    """
    plain = family.model()
    head = head_modules(plain, native_pooling(plain))
    theirs = peft.get_peft_model(
        copy.deepcopy(plain),
        peft.LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=list(head), task_type="SEQ_CLS"
        ),
    ).eval()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0.0, 0.2)
    state = peft.get_peft_model_state_dict(theirs)
    runner = Runner.of(plain, mode="packed")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=head)
    attach(plain, config, seed=0)
    load_adapter_state_dict(plain, state)
    texts, targets = texts_of(lengths) if texts is None else texts, targets_of(lengths)
    expected = _renamed(padded_oracle(theirs, texts, targets))
    return differences(_renamed(ours(runner, texts, targets)), expected)


def _renamed(result: Result) -> Result:
    """Both libraries' parameters under one name: what stands between the layer and the tensor differs."""

    def short(name: str) -> str:
        name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        for tensor in ("lora_A", "lora_B"):
            if tensor in name:
                layer = name.partition(".adapters.")[0].partition(f".{tensor}")[0]
                return f"{layer}.{tensor}"
        return name

    return Result(result.loss, {short(name): gradient for name, gradient in result.gradients.items()})
