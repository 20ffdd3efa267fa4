"""Small adapters that write, made in a moment and trained on nothing: ours and PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from veneer.adapter import BaseFacts, Facts, write_adapter
from veneer.lora import LoraConfig, adapter_parameters, adapter_state_dict, peft_config_dict
from veneer.models import load_base
from veneer.models.forms import HeadSpec
from veneer.tasks.adapted import adapt
from veneer.tasks.golden import golden_of
from veneer.tasks.instructions import Instructions
from veneer.tasks.templates import ALPACA, Template

__all__ = ["GOLDEN", "peft_writer", "written_writer"]

GOLDEN = (
    {"instruction": "Say hi", "output": "hi"},
    {"instruction": "Sum", "input": "1 2", "output": "3"},
)


def written_writer(
    path: Path,
    base: Path,
    *,
    template: Template | None = None,
    data: Any = "instruction",
    seed: int = 0,
    **lora: Any,
) -> Path:
    """Write an adapter on the causal base in the folder `base`, with golden answers, and return `path`."""
    found = load_base(str(base), head=HeadSpec("causal"))
    task = Instructions(template or Template("alpaca", ALPACA), data=data)
    given = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"} | lora
    adapted = adapt(
        found, task, LoraConfig(**given), precision="fp32", mode="padded", max_length=400, seed=seed
    )
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for _, parameter in adapter_parameters(adapted.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    golden = ({"text": "as it stands"},) if data == "text" else GOLDEN
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
        max_length=400,
        golden=golden_of(adapted, golden),
    )
    config = peft_config_dict(
        adapted.lora, adapted.model, base_model_name_or_path=str(base), task_type="CAUSAL_LM"
    )
    write_adapter(path, peft_config=config, tensors=adapter_state_dict(adapted.model), facts=facts)
    return path


def peft_writer(path: Path, base: Path, **lora: Any) -> Path:
    """The same by PEFT alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    given = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"} | lora
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given)
        )
    theirs.save_pretrained(str(path))
    return path
