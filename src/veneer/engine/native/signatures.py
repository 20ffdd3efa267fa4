"""What the compiled functions take: their types, and the structures that attention and adapters are handed over in.

The structures stand in the sources' order (`source/attention.h`, `source/common.h`); the shapes are those of
`veneer.engine.native.kernels`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LANES",
    "NO_ADAPTERS",
    "TYPES",
    "TYPES_OF_FROZEN",
    "TYPES_OF_ROOM",
    "Adapters",
    "Part",
    "Texts",
    "texts_given",
]

_P, _S, _I, _F = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_float
LANES = 16
_ALL = 2**62  # tokens before a query: every one


@dataclass(frozen=True)
class Texts:
    """Attention of packed texts.

    Attributes:
        q_first, k_first: (B + 1,) int32, where each text's queries, and its keys and values, begin.
        tokens: T, of the keys.
        longest_q, longest_k: most queries, and most keys, of a text.
        heads, kv_heads, size: H, K and D.
        scaling: of the scores.
        causal: a query sees what stands before it and itself; the queries are those of a text's last tokens.
        before: and no more than so many before it; None: all.
        row: (tokens,) int32, the row of each key and value, for `attend` alone; None: its own.
    """

    q_first: Tensor
    k_first: Tensor
    tokens: int
    longest_q: int
    longest_k: int
    heads: int
    kv_heads: int
    size: int
    scaling: float
    causal: bool
    before: int | None = None
    row: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """One adapter of a group of layers: A (r, n) and B (outputs, r) in fp32, for the outputs from `start` on."""

    A: Tensor
    B: Tensor
    start: int
    scaling: float


class _Texts(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("q", "k", "v")),
        *((name, _S) for name in ("ldq", "ldk")),
        *((name, _P) for name in ("q_first", "k_first", "row")),
        *((name, _S) for name in ("texts", "heads", "kv_heads", "D")),
        ("scaling", _F),
        ("causal", _I),
        ("before", _S),
    ]


class _Part(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("A", "B", "of_A", "of_B")),
        *((name, _S) for name in ("r", "start", "outputs", "at")),
        ("scaling", _F),
    ]


_PRODUCT = [_S, _S, _S, _P, _I, _P, _S, _P, _P, _S, _I]  # the last of every product's with adapters

TYPES: dict[str, tuple[Any, list[Any]]] = {  # once for each dtype
    "gelu_tanh_value": (None, [_P, _P, _S, _I]),
    "gelu_value": (None, [_P, _P, _S, _I]),
    "silu_value": (None, [_P, _P, _S, _I]),
    "gelu_tanh_gradient": (None, [_P, _P, _P, _S, _I]),
    "gelu_gradient": (None, [_P, _P, _P, _S, _I]),
    "silu_gradient": (None, [_P, _P, _P, _S, _I]),
    "norm": (None, [_P, _P, _P, _F, _F, _I, _P, _P, _P, _S, _S, _I]),
    "norm_gradient": (None, [_P, _P, _P, _F, _P, _P, _P, _P, _S, _S, _I]),
    "attention_scratch": (_S, [_S, _S, _S]),
    "attend": (None, [_P, _P, _S, _S, _P, _S, _I]),
    "attend_gradient": (None, [_P, _P, _S, _P, _P, _P, _P, _S, _P, _S, _I]),
    "lora_forward": (None, [_P, _P, *_PRODUCT]),
    "lora_backward": (None, [_P, _P, _P, _P, *_PRODUCT]),
}

TYPES_OF_ROOM: dict[str, tuple[Any, list[Any]]] = {
    "lora_floats": (_S, [_S, _S, _S, _S]),
    "lora_shared": (_S, [_S, _S, _S, _S]),
}

TYPES_OF_FROZEN: dict[str, tuple[Any, list[Any]]] = {  # in bf16 with a matrix unit, in fp32 with AVX2 alone
    "frozen_tiles": (None, [_P, _I, _S, _S, _P, _I]),
    "frozen_floats": (_S, [_S, _S, _S, _I]),
    "frozen_takes": (_I, [_S, _S, _P, _I]),
    "frozen_forward": (None, [_P, _P, _P, _P, _P, *_PRODUCT]),
    "frozen_backward": (None, [_P, _P, _P, _P, _P, _P, *_PRODUCT]),
}


def texts_given(q: int, k: int, v: int, ldq: int, ldk: int, texts: Texts) -> _Texts:
    """Queries, keys and values from these places on, rows `ldq` and `ldk` apart, as the kernels take them."""
    return _Texts(
        q,
        k,
        v,
        ldq,
        ldk,
        texts.q_first.data_ptr(),
        texts.k_first.data_ptr(),
        None if texts.row is None else texts.row.data_ptr(),
        len(texts.q_first) - 1,
        texts.heads,
        texts.kv_heads,
        texts.size,
        texts.scaling,
        texts.causal,
        _ALL if texts.before is None else texts.before,
    )


class Adapters:
    """The adapters of a group as the kernels take them: made once for many calls.

    It has their factors, so that these stay; whoever moves one in memory has to make another.

    Attributes:
        parts: them.
        width: L.
        given: the same as an array of the kernels' structures.
    """

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self.parts = tuple(parts)
        self.given, self.width = (_Part * len(self.parts))(), 0
        for i, part in enumerate(self.parts):
            outputs, r = part.B.shape
            places = part.A.data_ptr(), part.B.data_ptr(), None, None
            self.given[i] = _Part(*places, r, part.start, outputs, self.width, part.scaling)
            self.width += -(-r // LANES) * LANES

    def __len__(self) -> int:
        return len(self.parts)

    def with_gradients(self) -> tuple[Any, list[Tensor]]:
        """The array with places for the gradients, and these: of A_1, B_1, A_2, ..., with whatever stands in them."""
        given, found = type(self.given).from_buffer_copy(self.given), []
        for structure, part in zip(given, self.parts, strict=True):
            of_A, of_B = torch.empty_like(part.A), torch.empty_like(part.B)
            structure.of_A, structure.of_B = of_A.data_ptr(), of_B.data_ptr()
            found += [of_A, of_B]
        return given, found


NO_ADAPTERS = Adapters()
