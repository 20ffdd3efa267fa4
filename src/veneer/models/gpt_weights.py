"""GPT-2's published weights, from the hub's `model.safetensors` into the names and shapes of `gpt.py`.

The file stores each linear layer as a "Conv1D", (in, out), and query, key and value fused into one `c_attn`;
both are undone here, once, so that nothing later has to know of them. Every tensor of the file is accounted
for: used, ignored by name, or a fault; all faults come in one BaseError. This file knows of no download: it
is given a path or tensors.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from veneer.errors import BaseError
from veneer.models.gpt import GPT, SIZES, GPTConfig

__all__ = ["gpt_from_state", "load_gpt"]

# The causal mask and its fill value, which old files store as buffers.
_IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

_OUTSIDE_BLOCKS = {  # ours: the hub's
    "tok_emb.weight": "wte.weight",
    "pos_emb.weight": "wpe.weight",
    "final_norm.weight": "ln_f.weight",
    "final_norm.bias": "ln_f.bias",
}
_NORMS = {"norm1": "ln_1", "norm2": "ln_2"}  # in every block, shapes as ours
_CONV1D = {
    "att.out_proj": "attn.c_proj",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
}  # transposed
_FUSED = (
    "att.W_query",
    "att.W_key",
    "att.W_value",
)  # the three parts of attn.c_attn, transposed, in this order

_CONFIG_KEYS = {  # ours: config.json's
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "context_length": "n_positions",
    "vocab_size": "vocab_size",
}
_COMPUTED = {  # options of config.json that `gpt.py` computes in one way only; absent means this value
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def load_gpt(
    path: str | Path,
    *,
    config: GPTConfig | None = None,
    num_labels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> GPT:
    """A GPT-2 with the weights of a `model.safetensors`, in eval mode on the CPU.

    Args:
        path: the file, or a folder that holds it (as the hub's snapshot does).
        config: the sizes; default: from the `config.json` beside the file, else the published size that fits.
        num_labels: put a fresh classification head in place of the output head.
        dtype: of every parameter.

    Raises:
        BaseError: no file, not a safetensors file, an option that gpt.py does not compute, or tensors that
            don't fit; every fault is listed.
    """
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise BaseError(f"No {file.name} at {file.parent}. Expected GPT-2's weights as one safetensors file.")
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise BaseError(f"{file} is not a readable safetensors file ({error}). Download it again.") from error
    if config is None and (file.parent / "config.json").is_file():
        config = _config_from_json(file.parent / "config.json")
    return gpt_from_state(state, config=config, num_labels=num_labels, dtype=dtype)


def gpt_from_state(
    state: Mapping[str, Tensor],
    *,
    config: GPTConfig | None = None,
    num_labels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> GPT:
    """A GPT with the weights of a state dict of transformers' GPT-2, keys with or without `transformer.`.

    Arguments and errors as for `load_gpt`; `state` is not changed and shares no memory with the model.
    """
    named = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
    if len(named) < len(state):
        raise BaseError(
            "The weights hold tensors twice, with and without the `transformer.` prefix. Keep one of each."
        )
    config = config or _published_size(named)
    with torch.device("meta"):
        model = GPT(config)
    ours = _converted(named, {name: parameter.shape for name, parameter in model.named_parameters()}, config)
    model.load_state_dict(
        {name: tensor.to(dtype) for name, tensor in ours.items()}, assign=True, strict=False
    )
    model.tie_head()  # the one key left out: it is the token embedding again
    if num_labels is not None:
        model.set_classification_head(num_labels)
    return model.eval()


def _converted(
    named: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], config: GPTConfig
) -> dict[str, Tensor]:
    """The tensors under our names, as (out, in); one BaseError names each missing, unexpected or bad one."""
    left = {key: tensor for key, tensor in named.items() if not _IGNORED.fullmatch(key)}
    faults: list[str] = []
    head = left.pop("lm_head.weight", None)
    if head is not None and not ("wte.weight" in left and torch.equal(head, left["wte.weight"])):
        faults.append("lm_head.weight differs from wte.weight; GPT-2's output head is its token embedding")

    ours: dict[str, Tensor] = {}
    for name, (key, transposed, part) in _sources(config).items():
        tensor = left.get(key)
        if tensor is None:
            continue
        out, *rest = shapes[name]
        whole = [out if part is None else 3 * out, *rest]  # (out, in) or (out,)
        expected = tuple(reversed(whole) if transposed else whole)
        if tuple(tensor.shape) != expected:
            faults.append(f"{key} has shape {tuple(tensor.shape)}; expected {expected}")
        elif not tensor.isfinite().all():
            faults.append(f"{key} holds values that are not finite")
        else:
            tensor = tensor.t() if transposed else tensor
            tensor = tensor if part is None else tensor.chunk(3)[part]
            ours[name] = tensor.clone(memory_format=torch.contiguous_format)
    known = {key for key, _, _ in _sources(config).values()}
    faults += [f"{key} is missing" for key in sorted(known - left.keys())]
    faults += [
        f"{key} {tuple(left[key].shape)} is not a tensor of GPT-2" for key in sorted(left.keys() - known)
    ]
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in dict.fromkeys(faults))
        raise BaseError(
            f"The weights don't fit {config}. Give GPT-2's own file, or the config it was made with.{listed}"
        )
    return ours


def _sources(config: GPTConfig) -> dict[str, tuple[str, bool, int | None]]:
    """Where each of our tensors lies: the hub's key, whether it is stored (in, out), which third of it."""
    sources: dict[str, tuple[str, bool, int | None]] = {}
    for ours, key in _OUTSIDE_BLOCKS.items():
        sources[ours] = (key, False, None)
    for i, kind in itertools.product(range(config.n_layers), ("weight", "bias")):
        block, stored = f"trf_blocks.{i}", f"h.{i}"
        for ours, key in _NORMS.items():
            sources[f"{block}.{ours}.{kind}"] = (f"{stored}.{key}.{kind}", False, None)
        for ours, key in _CONV1D.items():
            sources[f"{block}.{ours}.{kind}"] = (f"{stored}.{key}.{kind}", kind == "weight", None)
        for part, ours in enumerate(_FUSED):
            sources[f"{block}.{ours}.{kind}"] = (f"{stored}.attn.c_attn.{kind}", kind == "weight", part)
    return sources


def _published_size(named: Mapping[str, Tensor]) -> GPTConfig:
    """The published GPT-2 with the width and depth of these tensors (no tensor says the number of heads)."""
    layers = len({key.split(".")[1] for key in named if key.startswith("h.")})
    width = named["wte.weight"].shape[-1] if "wte.weight" in named else None
    for size in SIZES.values():
        if (size.emb_dim, size.n_layers) == (width, layers):
            return size
    raise BaseError(
        f"The weights have {layers} blocks of width {width}, which is none of the published sizes "
        f"({', '.join(SIZES)}). Give `config`, or put the model's config.json beside the file."
    )


def _config_from_json(file: Path) -> GPTConfig:
    """The sizes in transformers' `config.json`; options that gpt.py does not compute are refused by name."""
    try:
        stored: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseError(f"{file} is not JSON ({error}). Download it again.") from error
    if not isinstance(stored, dict) or stored.get("model_type") != "gpt2":
        raise BaseError(f"{file} does not describe a GPT-2 (model_type 'gpt2'). Give GPT-2's own folder.")
    faults = [
        f"{key} is {stored[key]!r}; gpt.py computes {expected[0]!r}"
        for key, expected in _COMPUTED.items()
        if stored.get(key, expected[0]) not in expected
    ]
    sizes = {ours: stored[key] for ours, key in _CONFIG_KEYS.items() if stored.get(key) is not None}
    faults += [
        f"{_CONFIG_KEYS[ours]} is {size!r}; expected a number"
        for ours, size in sizes.items()
        if type(size) is not int
    ]
    config = GPTConfig() if faults else replace(GPTConfig(), **sizes)
    if not faults and stored.get("n_inner") not in (None, 4 * config.emb_dim):
        faults.append(f"n_inner is {stored['n_inner']!r}; gpt.py computes 4 * n_embd = {4 * config.emb_dim}")
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise BaseError(
            f"{file} asks for what gpt.py does not compute. Load this model with transformers.{listed}"
        )
    return config
