"""Golden answers: stored with an adapter, and given again whenever it is loaded.

This file knows an `Adapted` and what it answers; where the answers are stored is `veneer.adapter`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from veneer.adapter import Golden
from veneer.errors import AdapterError, DriftError
from veneer.tasks.encoding import TokenLists

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = ["GOLDEN_TOLERANCE", "golden_of", "replay"]

GOLDEN_TOLERANCE = 2e-3  # fp32 logits on another processor, whose sums have another order


def golden_of(adapted: Adapted, texts: Sequence[str]) -> Golden:
    """The answers to store with an adapter; `adapted` has to be in fp32."""
    outputs = adapted.outputs_of(TokenLists(adapted.encode(texts)))
    rows = tuple(tuple(round(float(value), 6) for value in row) for row in outputs)
    return Golden(inputs=tuple(texts), outputs=rows, tolerance=GOLDEN_TOLERANCE)


def replay(adapted: Adapted, golden: Golden) -> None:
    """Answer the golden inputs again and compare.

    Raises:
        DriftError: an output differs by more than the tolerance.
        AdapterError: what is stored does not fit the adapter.
    """
    if not golden.inputs:
        return
    outputs = adapted.outputs_of(TokenLists(adapted.encode([str(text) for text in golden.inputs])))
    stored = np.asarray(golden.outputs, dtype=np.float32)
    if outputs.shape != stored.shape:
        raise AdapterError(
            f"veneer.json stores golden outputs of the shape {stored.shape}, the adapter gives {outputs.shape}. "
            "The folder is damaged; train it again."
        )
    difference = np.abs(outputs - stored)
    limit = golden.tolerance * max(1.0, float(np.abs(stored).max()))
    if not difference.max() <= limit:  # so that NaN is a difference too
        row = int(difference.max(axis=1).argmax())
        raise DriftError(
            f"This adapter does not answer as it did when it was stored: golden input {row} gives "
            f"{np.round(outputs[row], 4).tolist()}, stored was {np.round(stored[row], 4).tolist()} "
            f"(limit {limit:.1e}). Its files, its base or a library has changed; train it again, or load it with "
            "verify=False (--no-verify) if you know why."
        )
