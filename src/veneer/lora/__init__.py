"""LoRA on any torch module: configure, attach, train, merge, store, and take off again.

    from veneer.lora import LoraConfig, attach, detach

    report = attach(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), seed=0)
    print(report)
    detach(model)

This package must not know any model, task or file.
"""

from veneer.lora.algebra import Combined, CombineMethod, combine
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
from veneer.lora.int8 import Int8Linear, Int8Weight
from veneer.lora.layers import LoraEmbedding, LoraLinear
from veneer.lora.merge import merge, merge_and_unload, merged_adapters, unmerge
from veneer.lora.peft_format import TASK_TYPES, lora_config_from_peft, peft_config_dict
from veneer.lora.peft_state import adapter_state_dict, load_adapter_state_dict
from veneer.lora.quantize import held_in_int8, quantizable, quantize_
from veneer.lora.resolution import PatternMatch, Resolution, Target
from veneer.lora.swap import SavedModule
from veneer.lora.targets import resolve_targets

__all__ = [
    "TASK_TYPES",
    "AttachReport",
    "CombineMethod",
    "Combined",
    "Int8Linear",
    "Int8Weight",
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
    "combine",
    "count_parameters",
    "detach",
    "disabled",
    "held_in_int8",
    "load_adapter_state_dict",
    "lora_config_from_peft",
    "lora_linear",
    "merge",
    "merge_and_unload",
    "merged_adapters",
    "peft_config_dict",
    "quantizable",
    "quantize_",
    "resolve_targets",
    "set_active",
    "unmerge",
]
