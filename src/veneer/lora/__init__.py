"""LoRA on any torch module: configure, attach, train, merge, store, and take off again.

    from veneer.lora import LoraConfig, attach, detach

    report = attach(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), seed=0)
    print(report)
    detach(model)

This package must not know any model, task or file.
"""

from veneer.lora.attach import (
    AttachReport,
    active_adapters,
    adapter_names,
    adapter_parameters,
    attach,
    detach,
    disabled,
    set_active,
)
from veneer.lora.autograd import lora_linear
from veneer.lora.config import LoraConfig
from veneer.lora.counts import ParameterCount, count_parameters
from veneer.lora.layers import LoraEmbedding, LoraLinear
from veneer.lora.peft_state import adapter_state_dict, load_adapter_state_dict
from veneer.lora.resolution import PatternMatch, Resolution, Target
from veneer.lora.swap import SavedModule
from veneer.lora.targets import resolve_targets

__all__ = [
    "AttachReport",
    "LoraConfig",
    "LoraEmbedding",
    "LoraLinear",
    "ParameterCount",
    "PatternMatch",
    "Resolution",
    "SavedModule",
    "Target",
    "active_adapters",
    "adapter_names",
    "adapter_parameters",
    "adapter_state_dict",
    "attach",
    "count_parameters",
    "detach",
    "disabled",
    "load_adapter_state_dict",
    "lora_linear",
    "resolve_targets",
    "set_active",
]
