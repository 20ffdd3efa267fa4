"""Adapter folders without training: a tiny base, an adapter whose every tensor is drawn, golden answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from veneer.adapter import BaseFacts, Facts, write_adapter
from veneer.lora import LoraConfig, adapter_parameters, adapter_state_dict, peft_config_dict
from veneer.models import load_base
from veneer.models.heads import Pooling, native_pooling
from veneer.tasks.adapted import adapt
from veneer.tasks.classification import Classification
from veneer.tasks.golden import golden_of

LABELS = ("ham", "spam", "other")
TEXTS = (
    "win a free prize now",
    "thanks",
    "my order is late and i hate it, call me now and help me to get the refund",
    "the film is not good",
    "",
)


def written(
    path: Path,
    base: Path,
    *,
    pooling: Pooling | None = None,
    labels: tuple[str, ...] = LABELS,
    multi_label: bool = False,
    seed: int = 0,
    max_length: int = 24,
    golden: bool = True,
    **lora: Any,
) -> Path:
    """Write an adapter on the base in the folder `base`, with golden answers to TEXTS, and return `path`."""
    found = load_base(str(base), labels=labels, multi_label=multi_label)
    found = found.with_pooling(pooling or native_pooling(found.model))
    given = {"r": 4, "target_modules": ["query", "value"], "modules_to_save": found.head} | lora
    task = Classification(labels, found.pooling, multi_label=multi_label)
    adapted = adapt(
        found, task, LoraConfig(**given), precision="fp32", mode="padded", max_length=max_length, seed=seed
    )
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for _, parameter in adapter_parameters(adapted.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    native = native_pooling(found.model) == found.pooling
    facts = Facts(
        task=task.name,
        task_facts=task.facts(),
        base=BaseFacts(
            name=found.name,
            content_hash=found.content_hash,
            tokenizer_hash=found.tokenizer_hash,
            family=found.family,
        ),
        lora=adapted.lora.to_dict(),
        max_length=max_length,
        golden=golden_of(adapted, TEXTS) if golden else None,
    )
    config = peft_config_dict(
        adapted.lora,
        adapted.model,
        base_model_name_or_path=str(base),
        task_type="SEQ_CLS" if native else None,
    )
    write_adapter(path, peft_config=config, tensors=adapter_state_dict(adapted.model), facts=facts)
    return path
