"""Layers with adapters beside them: the original module inside, untouched, and any number of low-rank pairs.

    LoraLinear       for nn.Linear and transformers' Conv1D
    LoraEmbedding    for nn.Embedding

This file must not know names of models or tasks, nor how an adapter is configured or stored.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Any, cast

from torch import Tensor, nn

from veneer.lora.autograd import lora_linear, low_rank_product
from veneer.lora.dora import Dora, LayerAdapter, dora_change, dora_linear
from veneer.lora.int8 import Int8Linear

__all__ = ["AdaptedLayer", "Layout", "LoraEmbedding", "LoraLinear", "layout_of", "wrap"]


class Layout(Enum):
    """The kinds of layer that can have an adapter; the value is what reports call them."""

    LINEAR = "Linear"
    CONV1D = "Conv1D"
    EMBEDDING = "Embedding"

    def sizes(self, layer: nn.Module) -> tuple[int, int]:
        """(n inputs, m outputs) of a layer of this kind; for an embedding (rows, width)."""
        if isinstance(layer, Int8Linear):
            return layer.in_features, layer.out_features
        rows, columns = cast(Tensor, layer.weight).shape
        return (columns, rows) if self is Layout.LINEAR else (rows, columns)


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a module that LoRA can be put on; None for every other.

    A subclass with a `forward` of its own is another function and has no layout, but an embedding that
    multiplies its rows by a scalar `embed_scale` has (Gemma 3, BART). Conv1D is known by its name, so that
    this needs no import of transformers. A layer held in int8 has the layout of the one that it stands for.
    """
    kind: Any = type(module)
    if isinstance(module, Int8Linear):
        return Layout.CONV1D if module.transposed else Layout.LINEAR
    if _is_conv1d(kind):
        return Layout.CONV1D
    if isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward:
        return Layout.LINEAR
    if (
        isinstance(module, nn.Embedding)
        and module.max_norm is None
        and (kind.forward is nn.Embedding.forward or _embed_scale(module) is not None)
    ):
        return Layout.EMBEDDING
    return None


@lru_cache(maxsize=256)
def _is_conv1d(kind: type) -> bool:
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in kind.__mro__)


def _embed_scale(module: nn.Module) -> float | Tensor | None:
    scale = getattr(module, "embed_scale", None)
    if isinstance(scale, Tensor) and scale.numel() == 1:
        return scale
    return float(scale) if isinstance(scale, int | float) else None


class _Adapted(nn.Module):
    """What both kinds of layer share: the base, the pairs, and which of them count."""

    def __init__(self, base_layer: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layout = layout
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        """The adapters that are added to the base's output; none while merged or disabled."""
        self.training = base_layer.training
        self.in_features, self.out_features = layout.sizes(base_layer)

    @property
    def weight(self) -> Tensor:
        """The base's weight: models read `layer.weight`."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def oriented(self) -> Tensor:
        """The base's weight as (m, n) whatever the layout."""
        return self.weight if self.layout is Layout.LINEAR else self.weight.t()

    def pair(self, name: str) -> LayerAdapter:
        """The tensors of the adapter `name` in this layer."""
        return cast(LayerAdapter, self.adapters[name])

    def delta(self, name: str) -> Tensor:
        """What the adapter `name` adds to the base's weight, in fp32 (or fp64) and in that weight's own layout:
        `scaling · B A`; with DoRA `g ⊙ (W + scaling · B A) - W`."""
        pair = self.pair(name)
        if isinstance(pair, Dora):
            change = pair.delta(self.oriented)  # (m, n)
        else:
            lora_A, lora_B = pair.factors()
            change = (lora_B @ lora_A) * pair.settings.scaling
        return change if self.layout is Layout.LINEAR else change.t()


class LoraLinear(_Adapted):
    """`base_layer(x)` plus the active adapters; `base_layer` is an nn.Linear, a Conv1D or either in int8."""

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, or None."""
        return cast("Tensor | None", self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m), in the dtype of the base."""
        pairs = [self.pair(name) for name in self.active]
        if (
            pairs
            and _runs_as_written(self.base_layer)
            and not (self._dropout(pairs[0]) and _is_dora(pairs[0]))
        ):
            y = self._with_base(x, pairs.pop(0))
        else:
            y = self.base_layer(x)
        for pair in pairs:
            y = y + self._change(x, pair)
        return y

    def _with_base(self, x: Tensor, pair: LayerAdapter) -> Tensor:
        """(..., m): the base's output and one adapter's change, in one."""
        transposed = self.layout is Layout.CONV1D
        if isinstance(pair, Dora):
            return dora_linear(x, self.weight, self.bias, pair, transposed=transposed)
        lora_A, lora_B = pair.factors()
        dropout, scaling = self._dropout(pair), pair.settings.scaling
        return lora_linear(
            x, self.weight, self.bias, lora_A, lora_B, scaling, dropout=dropout, transposed=transposed
        )

    def _change(self, x: Tensor, pair: LayerAdapter) -> Tensor:
        """(..., m): one adapter's change alone."""
        dropout = self._dropout(pair)
        if isinstance(pair, Dora):
            transposed = self.layout is Layout.CONV1D
            return dora_change(x, self.weight, pair, dropout=dropout, transposed=transposed)
        return low_rank_product(x, *pair.factors(), pair.settings.scaling, dropout=dropout)

    def _dropout(self, pair: LayerAdapter) -> float:
        return pair.settings.dropout if self.training else 0.0


class LoraEmbedding(_Adapted):
    """`base_layer(ids)` plus the active adapters' rows. A (r, rows), B (width, r).

    As in PEFT there is no dropout here, the row `padding_idx` gets no gradient, and a base that multiplies
    its rows by `embed_scale` multiplies the adapter's rows too.
    """

    @property
    def num_embeddings(self) -> int:
        """The number of rows."""
        return self.in_features

    @property
    def embedding_dim(self) -> int:
        """The width of a row."""
        return self.out_features

    @property
    def padding_idx(self) -> int | None:
        """The row that is never trained, or None."""
        return cast("int | None", self.base_layer.padding_idx)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) integers -> (..., width), in the dtype of the base."""
        base: Tensor = self.base_layer(ids)
        y, scale = base, _embed_scale(self.base_layer)
        for name in self.active:
            pair = self.pair(name)
            lora_A, lora_B = pair.direction() if isinstance(pair, Dora) else pair.factors()
            h = nn.functional.embedding(
                ids,
                lora_A.t(),
                padding_idx=self.padding_idx,
                scale_grad_by_freq=cast(bool, self.base_layer.scale_grad_by_freq),
            )  # (..., r)
            rows = (h @ lora_B.t()) * pair.settings.scaling  # (..., width)
            rows = rows if scale is None else rows * scale
            if isinstance(pair, Dora):
                rows = pair.scale(self.oriented) * (base + rows) - base
            y = y + rows.to(y.dtype)
        return y


AdaptedLayer = LoraLinear | LoraEmbedding


def wrap(module: nn.Module, layout: Layout) -> AdaptedLayer:
    """The layer that holds `module` and, later, its adapters."""
    return LoraEmbedding(module, layout) if layout is Layout.EMBEDDING else LoraLinear(module, layout)


def _is_dora(pair: LayerAdapter) -> bool:
    return isinstance(pair, Dora)


def _runs_as_written(base: nn.Module) -> bool:
    """Whether calling `base` is one product with `base.weight`: no hooks, no forward of its own, not int8."""
    return not (
        isinstance(base, Int8Linear)
        or base._forward_hooks
        or base._forward_pre_hooks
        or base._backward_hooks
        or "forward" in vars(base)
    )
