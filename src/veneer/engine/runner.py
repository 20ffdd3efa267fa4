"""Run a base over a batch: packed where that is exact, padded where it is not.

`Runner` hides the difference: both ways give one row of hidden states for the tokens of a packed batch. At start-up
two short texts are computed both ways; a base that does not give the same answer packed runs padded, and says so.

This file knows transformers' calling conventions, no task and no particular family.

Shapes: B texts, T tokens in all, L the longest text, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from veneer.engine import interface
from veneer.engine.allocation import keep_freed_memory
from veneer.engine.beginnings import beginnings_of
from veneer.engine.blocks import Program
from veneer.engine.families import program_of
from veneer.engine.packing import PackedBatch, pack
from veneer.errors import ConfigError

__all__ = ["Runner", "backbone_of"]

Mode = Literal["packed", "padded"]

_CHECKED = "checked against padded on two texts"
_NO_FORM = "Veneer has none of its own for it"

# fp32: sums in another order; half precision: one rounding of a hidden state of size about 1, several layers deep.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.15, torch.float16: 0.05}


@dataclass(frozen=True)
class Runner:
    """How a base is run.

    Attributes:
        model: the model of transformers (its task class; the head is not run here).
        mode: "packed" or "padded".
        reason: why, in words for the user.
        program: the engine's own form of the backbone, where it has one (packed only).
        recompute: blocks keep their inputs alone for the backward pass and compute the rest again (the program's only).
    """

    model: nn.Module
    mode: Mode
    reason: str
    program: Program | None = None
    recompute: bool = False

    @classmethod
    def of(cls, model: nn.Module, *, mode: Literal["auto", "packed", "padded"] = "auto") -> Runner:
        """Choose how to run `model`.

        `auto` compares packed against padded on two short texts and falls back to padded; `packed` raises
        `interface.NotPackableError` instead; `padded` asks nothing.
        """
        keep_freed_memory()
        if mode == "padded":
            return cls(model, "padded", "asked for")
        if not getattr(model, "_supports_attention_backend", False):
            found: str | None = f"{type(model).__name__} does not use transformers' attention interface"
        else:
            interface.register()
            found = _difference(model)
        if found is None:
            program = program_of(backbone_of(model))
            fault = _NO_FORM if program is None else _difference(model, program)
            if fault is None:
                return cls(model, "packed", _CHECKED, program)
            return cls(model, "packed", f"{_CHECKED}; through transformers' own forward: {fault}")
        if mode == "packed":
            raise interface.NotPackableError(f"this base can't run packed: {found}")
        return cls(model, "padded", found)

    def forget_(self) -> None:
        """Let go of the weights that were arranged for the check at start-up: they are about to be cast."""
        if self.program is not None:
            self.program.forget_()

    def recomputing(self) -> Runner:
        """The same with gradient checkpointing.

        Raises:
            ConfigError: the base does not run in the engine's own form.
        """
        if self.program is None:
            raise ConfigError(
                f"gradient_checkpointing: {type(self.model).__name__} runs {self.mode} through transformers' own "
                "forward, where Veneer has none; it is there for GPT-2, BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, "
                "Llama, Mistral, Qwen2, Qwen3, Gemma and Phi-3. "
                "Use smaller batches with gradient_accumulation instead."
            )
        return replace(self, recompute=True)

    def hidden_states(
        self, batch: PackedBatch, reads: Tensor | None = None, below: tuple[int, Tensor] | None = None
    ) -> Tensor:
        """(T, C): the last hidden state of each token, in packed order; (S, C) of the tokens in `reads` alone.

        Args:
            batch: T tokens.
            reads: (S,) int64 places in the packed row; what else the last block would compute may be left out.
            below: the number of a block and the states (T, C) before it, where they are known (see `prefix`).
        """
        start, x = below or (0, None)
        if self.program is not None and not _drops(self.model) and self.program.ready(start):
            shared = beginnings_of(batch, self.program.rows(batch)) if self.program.causal else None
            return self.program(batch, reads, start=start, x=x, shared=shared, recompute=self.recompute)
        run = packed_hidden_states if self.mode == "packed" else padded_hidden_states
        hidden = run(self.model, batch)
        return hidden if reads is None else hidden.index_select(0, reads)


def backbone_of(model: nn.Module) -> nn.Module:
    """The part of a transformers model below its head; the model itself where it has none."""
    prefix = getattr(model, "base_model_prefix", "")
    return getattr(model, prefix, model) if prefix else model


def packed_hidden_states(model: nn.Module, batch: PackedBatch) -> Tensor:
    """(T, C), with attention inside each text only and no padding anywhere."""
    positions = batch.position_ids + _position_offset(model)
    with _implementation(model, interface.NAME), interface.running_packed(batch.layout), _no_pooler(model):
        out = backbone_of(model)(
            input_ids=batch.input_ids.unsqueeze(0),
            attention_mask=None,
            position_ids=positions.unsqueeze(0),
            **_extra(model, batch.token_type_ids),
        )
    return out[0][0]


def padded_hidden_states(model: nn.Module, batch: PackedBatch) -> Tensor:
    """(T, C), by the plain padded computation: the batch unpacked to (B, L), and its real tokens picked out."""
    lengths = batch.layout.cu_seqlens.diff().long()  # (B,)
    inside = torch.arange(batch.layout.longest, device=lengths.device) < lengths.unsqueeze(1)  # (B, L)
    ids = torch.full(inside.shape, _padding_id(model), device=lengths.device)
    ids[inside] = batch.input_ids
    types = None
    if batch.token_type_ids is not None:
        types = torch.zeros_like(ids)
        types[inside] = batch.token_type_ids
    with _no_pooler(model):
        out = backbone_of(model)(input_ids=ids, attention_mask=inside.long(), **_extra(model, types))
    return out[0][inside]


def _extra(model: nn.Module, token_type_ids: Tensor | None) -> dict[str, Any]:
    config: Any = model.config
    extra: dict[str, Any] = {}
    if getattr(config, "use_cache", None) is not None:
        extra["use_cache"] = False
    if token_type_ids is not None and getattr(config, "type_vocab_size", 0) > 1:
        extra["token_type_ids"] = token_type_ids.unsqueeze(0) if token_type_ids.ndim == 1 else token_type_ids
    return extra


def _position_offset(model: nn.Module) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1 (fairseq's rule); all others from 0."""
    embeddings: Any = getattr(backbone_of(model), "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0


def _padding_id(model: nn.Module) -> int:
    config: Any = model.config
    found = getattr(config, "pad_token_id", None)
    return 0 if found is None else int(found)


@contextmanager
def _implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Let every config below `model` name this attention implementation, and restore what it named."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = [
        (c, c._attn_implementation_internal)
        for c in configs.values()
        if hasattr(c, "_attn_implementation_internal")
    ]
    for config, _ in before:
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for config, old in before:
            config._attn_implementation_internal = old


@contextmanager
def _no_pooler(model: nn.Module) -> Iterator[None]:
    """Leave a backbone's pooler out: the head runs it on the states that are read, and keeps it in float32."""
    modules = backbone_of(model)._modules
    pooler = modules.get("pooler")
    if pooler is None:
        yield
        return
    modules["pooler"] = nn.Identity()
    try:
        yield
    finally:
        modules["pooler"] = pooler


def _drops(model: nn.Module) -> bool:
    """Whether the frozen base's own dropout is on: then every module has to run as transformers wrote it."""
    return model.training


def _difference(model: nn.Module, program: Program | None = None) -> str | None:
    """Two short texts computed packed (by the program, if given) and padded: None where they agree."""
    device = next(model.parameters()).device
    batch = probe_batch(model).to(device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if program is not None and not program.ready():
                return "the engine's own form does not compute what is attached"
            padded = padded_hidden_states(model, batch)
            packed = packed_hidden_states(model, batch) if program is None else program(batch)
    except interface.NotPackableError as error:
        return str(error)
    except (TypeError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        return f"its packed forward failed ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    finally:
        model.train(training)
    if packed.shape != padded.shape:
        return f"packed gives the shape {tuple(packed.shape)}, padded {tuple(padded.shape)}"
    scale = float(padded.float().abs().max().clamp(min=1e-6))
    off = float((packed.float() - padded.float()).abs().max()) / scale
    limit = _TOLERANCE.get(padded.dtype, 1e-3)
    if off <= limit:
        return None
    return f"packed and padded differ by {off:.1e} of the largest value (limit {limit:.0e})"


def probe_batch(model: nn.Module, lengths: Sequence[int] = (5, 9)) -> PackedBatch:
    """Two short texts of ordinary token ids, for the check at start-up."""
    config: Any = model.config
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 100))
    low = min(vocabulary // 2, 1000)
    return pack([[(low + 7 * i + 3 * n) % (vocabulary - low) + low for i in range(n)] for n in lengths])
