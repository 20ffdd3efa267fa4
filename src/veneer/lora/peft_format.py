"""adapter_config.json: our configuration in PEFT's keys, and PEFT's in ours.

What is written is what any PEFT reads: the modules as the shortest list of names that selects exactly the
adapted ones, the ranks of the tensors that are stored, and no key that older versions don't know. What is
read is computed as it says or refused by name. This file must not know files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from veneer.errors import AdapterError, ConfigError, UnsupportedOptionError, nearest
from veneer.lora.config import LoraConfig
from veneer.lora.dora import Dora
from veneer.lora.layers import Layout
from veneer.lora.low_rank import LowRank
from veneer.lora.matching import selects, shortest_suffixes, under
from veneer.lora.state import AdapterRecord, require_adapter
from veneer.lora.targets import base_modules

__all__ = ["TASK_TYPES", "lora_config_from_peft", "peft_config_dict"]

TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""PEFT's words for what the model is for."""

_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""The names that PEFT adds to modules_to_save by itself, and never adapts."""

_SAME = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "init_lora_weights",
)
"""Keys that mean the same in both."""

_NO_MEANING = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "fan_in_fan_out",  # read from the layer's type, in PEFT too
    "megatron_core",  # the name of a package; counts only with megatron_config
    "qalora_group_size",  # counts only with use_qalora
    "runtime_config",  # PEFT ignores it in files
)
"""Keys that don't change what is computed."""

_REASONS = {
    "lora_bias": "the B matrix would have a bias of its own",
    "use_qalora": "QA-LoRA pools the inputs of a quantised layer",
    "layer_replication": "the base would have more layers than it is stored with",
    "target_parameters": "bare parameters of mixture-of-experts layers are adapted",
    "trainable_token_indices": "single rows of the embedding are trained",
    "megatron_config": "the layers are split over machines by Megatron",
    "loftq_config": "LoftQ changes the base's weights",
    "corda_config": "CorDA changes the base's weights",
    "lora_ga_config": "LoRA-GA changes the base's weights",
    "kasa_config": "KaSA changes the base's weights",
    "alora_invocation_tokens": "the adapter acts only after certain tokens (aLoRA)",
    "arrow_config": "several adapters are mixed for each token (Arrow)",
    "monteclora_config": "the weights are sampled (MonteCLoRA)",
}

_CHANGES_BASE = ("olora", "corda", "loftq", "lora_ga")
_LEAVES_BASE = ("eva", "orthogonal")


def peft_config_dict(
    config: LoraConfig,
    model: nn.Module,
    *,
    base_model_name_or_path: str | None,
    task_type: str | None,
    name: str = "default",
) -> dict[str, Any]:
    """The content of adapter_config.json for an attached adapter, ready for JSON.

    Args:
        config: the configuration that the adapter was attached with.
        model: the model that has it.
        base_model_name_or_path: what PEFT loads the base from; None where only the user knows.
        task_type: one of `TASK_TYPES`, or None.
        name: the adapter.

    Raises:
        ConfigError: another configuration than the adapter's; an unknown task type; a task type with which
            PEFT would leave out an adapted module.
    """
    record = require_adapter(model, name)
    if config != record.config:
        raise ConfigError(f"The adapter {name!r} was attached with another configuration. Give that one.")
    _check_task_type(task_type, record, model)
    written: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name_or_path,
        "revision": None,
        "auto_mapping": None,
        "inference_mode": True,
        "target_modules": _selection(record, model),
        "layers_to_transform": None,
        "layers_pattern": None,
        "lora_dropout": config.lora_dropout,
        "fan_in_fan_out": any(layer.layout is Layout.CONV1D for layer in record.layers.values()),
        "bias": config.bias,
        "use_rslora": config.use_rslora,
        "modules_to_save": list(config.modules_to_save) if config.modules_to_save else None,
        "init_lora_weights": True if config.is_pissa else config.init_lora_weights,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "use_dora": config.use_dora,
        "layer_replication": None,
    }
    return written | _stored_ranks(record)


def lora_config_from_peft(given: Mapping[str, Any]) -> LoraConfig:
    """The configuration that an adapter_config.json of PEFT says.

    Attach it with `strict=False`: PEFT writes names that a model need not have (`score` beside `classifier`).

    Raises:
        UnsupportedOptionError: options that change what is computed and that Veneer does not compute, by
            name.
        AdapterError: a value that can't be; a missing target_modules.
    """
    faults = [*_unsupported(given), *_unsupported_init(given.get("init_lora_weights", True))]
    if faults:
        raise UnsupportedOptionError(
            "adapter_config.json asks for what Veneer does not compute. Use the adapter with PEFT, or merge "
            "it there "
            "and load the merged model as a base:",
            faults,
        )
    known = {key: given[key] for key in _SAME if given.get(key) is not None}
    if "target_modules" not in known:
        raise AdapterError(
            "adapter_config.json does not say target_modules. Write down the names of the adapted layers."
        )
    known = {key: value for key, value in known.items() if value not in ([], "") or key == "target_modules"}
    if isinstance(saved := known.get("modules_to_save"), list):
        known["modules_to_save"] = list(dict.fromkeys(saved))  # PEFT adds names that are there already
    try:
        return LoraConfig.from_dict(known)
    except ConfigError as error:
        raise AdapterError(f"adapter_config.json: {error}") from error


def _unsupported(given: Mapping[str, Any]) -> list[str]:
    """Keys that change the computation; null, false and empty mean that an option is not used."""
    faults = []
    if given.get("peft_type") != "LORA":
        faults.append(f"peft_type={given.get('peft_type')!r}: only 'LORA' is computed")
    for key, value in given.items():
        if key in _SAME or key in _NO_MEANING or value in (None, False) or value in ([], {}, ""):
            continue
        reason = _REASONS.get(key, "an option that Veneer does not know")
        faults.append(
            f"{key}={value!r}: {reason}. {nearest(key, _SAME) if key not in _REASONS else ''}".rstrip()
        )
    return faults


def _unsupported_init(init: object) -> list[str]:
    if not isinstance(init, str) or init in ("gaussian", "pissa"):
        return []
    if init in _LEAVES_BASE:
        return [
            f"init_lora_weights={init!r}: a start that Veneer does not compute. The trained adapter is an ordinary "
            "LoRA: write true in its place"
        ]
    why = "a start that Veneer does not know and that may have changed the base's weights"
    if init.startswith("pissa_niter_"):
        why = "the base's weights were changed by a randomised PiSSA that can't be repeated"
    elif init in _CHANGES_BASE:
        why = "the base's weights were changed before training"
    mend = (
        "Store it as an ordinary LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
    )
    return [f"init_lora_weights={init!r}: {why}. {mend}"]


def _check_task_type(task_type: str | None, record: AdapterRecord, model: nn.Module) -> None:
    if task_type is not None and task_type not in TASK_TYPES:
        raise ConfigError(
            f"task_type={task_type!r} is not one of PEFT's: {', '.join(TASK_TYPES)}. "
            f"{nearest(task_type, TASK_TYPES)}"
        )
    heads = _HEADS.get(task_type or "", ())
    saved = [module.name for module in record.saved]
    for name in base_modules(model):
        if any(name.endswith(head) for head in heads) and not under(name, saved):
            raise ConfigError(
                f"With task_type={task_type!r} PEFT looks for the whole of {name} in the adapter, which does not have "
                "it. Name it in modules_to_save, or leave task_type out."
            )


def _selection(record: AdapterRecord, model: nn.Module) -> list[str] | str:
    """The shortest list of suffixes that selects exactly the adapted modules, or an expression."""
    others = [name for name in base_modules(model) if name and name not in record.layers]
    suffixes = shortest_suffixes(record.layers, others)
    if not any(selects(suffix, other) for suffix in suffixes for other in others):
        return suffixes
    return "|".join(re.escape(name) for name in record.layers)


def _stored_ranks(record: AdapterRecord) -> dict[str, Any]:
    """r, lora_alpha and their patterns for the tensors that are stored, with the scaling that was trained."""
    config = record.config
    pairs = {layer_name: layer.pair(record.name) for layer_name, layer in record.layers.items()}
    if all(isinstance(pair, LowRank | Dora) for pair in pairs.values()):
        return {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "rank_pattern": dict(config.rank_pattern),
            "alpha_pattern": dict(config.alpha_pattern),
        }
    ranks = {layer_name: pair.rank for layer_name, pair in pairs.items()}
    alphas = {}
    for layer_name, pair in pairs.items():
        growth = pair.rank / pair.settings.r
        alphas[layer_name] = _whole(
            pair.settings.lora_alpha * (math.sqrt(growth) if config.use_rslora else growth)
        )
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
