"""Which module of a family is what: from a backbone of transformers to a `Program`.

A new family is one function here, if its blocks have one of the forms of `veneer.engine.blocks`; Llama and the families
of its form are in `veneer.engine.decoders`. What is not known here, or differs in a detail, gives None and runs through
transformers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from veneer.engine.activations import activation_of
from veneer.engine.allocation import memory_bytes
from veneer.engine.blocks import Block, Program
from veneer.engine.decoders import DECODERS, decoder_program
from veneer.engine.linears import LinearGroup
from veneer.engine.packing import PackedBatch

__all__ = ["program_of"]

_SHARE_OF_COPIES = 0.25
"""Of the memory: what copies of the weights may take. With more, a base that fits would not fit any more."""


def program_of(backbone: nn.Module) -> Program | None:
    """The program of a backbone, or None."""
    name = type(backbone).__name__
    build = decoder_program if name in DECODERS else _FAMILIES.get(name)
    program = None if build is None else build(backbone)
    if program is not None:
        _leave_room(program)
    return program


def _leave_room(program: Program) -> None:
    """Keep copies of the weights in another layout, two of each, only where the machine has room for them."""
    groups = [group for block in program.blocks for group in (block.qkv, block.out, block.up, block.down)]
    numbers = sum(p.numel() for group in groups for layer in group.layers for p in layer.parameters())
    room = _SHARE_OF_COPIES * memory_bytes()
    for group in groups:
        group.copies = frozenset(dtype for dtype in group.copies if 2 * dtype.itemsize * numbers <= room)


def _gpt2(backbone: Any) -> Program | None:
    config = backbone.config
    activation = activation_of(config.activation_function)
    if activation is None or config.add_cross_attention or config.reorder_and_upcast_attn:
        return None

    def block(module: Any) -> Block:
        attention, mlp = module.attn, module.mlp
        return Block(
            qkv=LinearGroup((attention, "c_attn")),
            out=LinearGroup((attention, "c_proj")),
            up=LinearGroup((mlp, "c_fc")),
            down=LinearGroup((mlp, "c_proj")),
            norm_1=(module, "ln_1"),
            norm_2=(module, "ln_2"),
            activation=activation,
            heads=attention.num_heads,
            scaling=attention.scaling,
            causal=True,
            norm_first=True,
        )

    def embed(batch: PackedBatch) -> Tensor:
        x: Tensor = backbone.wte(batch.input_ids) + backbone.wpe(batch.position_ids)
        return x

    return Program(embed, [block(module) for module in backbone.h], (backbone, "ln_f"))


def _bert(backbone: Any, *, embeddings_project: str | None = None) -> Program | None:
    """BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA without a projection of its embeddings."""
    config = backbone.config
    activation = activation_of(config.hidden_act) if isinstance(config.hidden_act, str) else None
    if activation is None or config.is_decoder or config.add_cross_attention:
        return None
    if embeddings_project is not None and hasattr(backbone, embeddings_project):
        return None
    offset_of = backbone.embeddings
    offset = int(offset_of.padding_idx) + 1 if hasattr(offset_of, "create_position_ids_from_input_ids") else 0

    def block(module: Any) -> Block:
        attention = module.attention.self
        return Block(
            qkv=LinearGroup((attention, "query"), (attention, "key"), (attention, "value")),
            out=LinearGroup((module.attention.output, "dense")),
            up=LinearGroup((module.intermediate, "dense")),
            down=LinearGroup((module.output, "dense")),
            norm_1=(module.attention.output, "LayerNorm"),
            norm_2=(module.output, "LayerNorm"),
            activation=activation,
            heads=attention.num_attention_heads,
            scaling=attention.scaling,
            causal=False,
            norm_first=False,
        )

    def embed(batch: PackedBatch) -> Tensor:
        types = batch.token_type_ids
        if types is not None and config.type_vocab_size < 2:
            types = None
        x: Tensor = backbone.embeddings(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=(batch.position_ids + offset).unsqueeze(0),
            token_type_ids=None if types is None else types.unsqueeze(0),
        )
        return x[0]

    return Program(embed, [block(module) for module in backbone.encoder.layer], None)


_FAMILIES: dict[str, Callable[[Any], Program | None]] = {
    "GPT2Model": _gpt2,
    "BertModel": _bert,
    "RobertaModel": _bert,
    "XLMRobertaModel": _bert,
    "CamembertModel": _bert,
    "ElectraModel": partial(_bert, embeddings_project="embeddings_project"),
}
