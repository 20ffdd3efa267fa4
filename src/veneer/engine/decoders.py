"""Which module is what in Llama and the families that have its form: Mistral, Qwen2, Qwen3, Gemma, Phi-3.

A block is norm, attention over rotary positions, norm, gated feed-forward layer. Each module has to be the very class
that transformers wrote for its family, and the configuration one whose every part is known here; what differs gives
None and runs through transformers' own forward.

This file knows these families' modules; how a block computes is said in `veneer.engine.blocks`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from veneer.engine.activations import Activation, activation_of
from veneer.engine.blocks import Block, Program
from veneer.engine.gated import Gated
from veneer.engine.linears import LinearGroup
from veneer.engine.norms import is_rms
from veneer.engine.packing import PackedBatch
from veneer.engine.rotary import Rotary
from veneer.engine.turned import Turned

__all__ = ["DECODERS", "decoder_program"]


@dataclass(frozen=True)
class _Family:
    """What is special about a family.

    Attributes:
        name: with which the names of its classes begin.
        fused: query, key and value are one layer, and gate and up another (Phi-3).
        head_norms: norms of each head (Qwen3).
        window: whether the configuration's window counts: in no layer, in all, or where `layer_types` says so.
    """

    name: str
    fused: bool = False
    head_norms: bool = False
    window: str = "none"


DECODERS = {
    "LlamaModel": _Family("Llama"),
    "MistralModel": _Family("Mistral", window="all"),
    "Qwen2Model": _Family("Qwen2", window="layers"),
    "Qwen3Model": _Family("Qwen3", head_norms=True, window="layers"),
    "GemmaModel": _Family("Gemma"),
    "Phi3Model": _Family("Phi3", fused=True, window="all"),
}
"""The backbones that are known here."""


def decoder_program(backbone: Any) -> Program | None:
    """The program of a backbone of one of these families, or None."""
    family = DECODERS[type(backbone).__name__]
    written = vars(sys.modules[type(backbone).__module__])
    activation = activation_of(backbone.config.hidden_act)
    if activation is None or not _is_whole(backbone, family, written):
        return None
    layers = list(backbone.layers[: backbone.config.num_hidden_layers])
    rotary = Rotary.of(backbone.rotary_emb, layers[0].self_attn.head_dim)
    if rotary is None:
        return None
    blocks = [_block(backbone, family, i, activation, rotary) for i in range(len(layers))]
    if any(block is None for block in blocks):
        return None

    def embed(batch: PackedBatch) -> Tensor:
        x: Tensor = backbone.embed_tokens(batch.input_ids)
        return x

    return Program(embed, [block for block in blocks if block is not None], (backbone, "norm"))


def _is_whole(backbone: Any, family: _Family, written: dict[str, Any]) -> bool:
    """Whether all modules are those that transformers wrote for the family, and nothing else is there."""
    if not type(backbone).__module__.startswith("transformers.models."):
        return False
    expected = {"rotary_emb": "RotaryEmbedding", "norm": "RMSNorm"}
    if not _are(backbone, expected, family, written):
        return False
    names = {"embed_tokens", "layers", "norm", "rotary_emb"}
    if set(dict(backbone.named_children())) != names or not len(backbone.layers):
        return False
    return all(_is_layer(layer, family, written) for layer in backbone.layers)


def _is_layer(layer: nn.Module, family: _Family, written: dict[str, Any]) -> bool:
    parts = {
        "self_attn": "Attention",
        "mlp": "MLP",
        "input_layernorm": "RMSNorm",
        "post_attention_layernorm": "RMSNorm",
    }
    if type(layer) is not written.get(f"{family.name}DecoderLayer") or "forward" in vars(layer):
        return False
    if not _are(layer, parts, family, written):
        return False
    dropouts = {name for name, module in layer.named_children() if type(module) is nn.Dropout}
    return set(dict(layer.named_children())) == set(parts) | dropouts


def _are(parent: Any, parts: dict[str, str], family: _Family, written: dict[str, Any]) -> bool:
    """Whether what hangs there is of the family's classes, as they were written."""
    for name, kind in parts.items():
        module: Any = getattr(parent, name, None)
        if type(module) is not written.get(family.name + kind) or "forward" in vars(module):
            return False
        if kind == "RMSNorm" and not is_rms(module):
            return False
    return True


def _block(
    backbone: Any, family: _Family, number: int, activation: Activation, rotary: Rotary
) -> Block | None:
    layer, config = backbone.layers[number], backbone.config
    attention, mlp = layer.self_attn, layer.mlp
    if not attention.is_causal or set(dict(attention.named_children())) != _layers_of(family):
        return None
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
    turned = Turned(
        rotary,
        heads,
        kv_heads,
        size,
        ((attention, "q_norm"), (attention, "k_norm")) if family.head_norms else None,
    )
    window = _window(config, family, number)
    return Block(
        qkv=LinearGroup(*((attention, name) for name in _QKV[family.fused])),
        out=LinearGroup((attention, "o_proj")),
        up=LinearGroup(*((mlp, name) for name in _UP[family.fused])),
        down=LinearGroup((mlp, "down_proj")),
        norm_1=(layer, "input_layernorm"),
        norm_2=(layer, "post_attention_layernorm"),
        activation=Gated(activation),
        heads=heads,
        scaling=attention.scaling,
        causal=True,
        norm_first=True,
        turned=turned,
        before=None if window is None else window - 1,
        parts=(layer, attention, mlp, backbone),
    )


_QKV = {False: ("q_proj", "k_proj", "v_proj"), True: ("qkv_proj",)}
_UP = {False: ("gate_proj", "up_proj"), True: ("gate_up_proj",)}


def _layers_of(family: _Family) -> set[str]:
    norms = {"q_norm", "k_norm"} if family.head_norms else set()
    return {*_QKV[family.fused], "o_proj"} | norms


def _window(config: Any, family: _Family, number: int) -> int | None:
    """How many tokens a token of this layer sees, itself among them; None: all before it."""
    if family.window == "none":
        return None
    if family.window == "layers" and config.layer_types[number] != "sliding_attention":
        return None
    window: int | None = config.sliding_window
    return window
