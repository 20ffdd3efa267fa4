"""Golden answers: stored with an adapter, and given again whenever it is loaded.

This file knows an `Adapted` and what it answers; where the answers are stored is `veneer.adapter`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from veneer.adapter import Golden
from veneer.errors import AdapterError, DriftError
from veneer.models import cast_frozen_
from veneer.naming import setting
from veneer.tasks.base import Encoded, Input, Outputs
from veneer.tasks.rounded import round_base_

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = ["GOLDEN_TOLERANCE", "golden_of", "golden_rows", "replay", "stored_drift"]

GOLDEN_TOLERANCE = 2e-3  # fp32 logits on another processor, whose sums have another order


def golden_of(adapted: Adapted, inputs: Sequence[Input]) -> Golden:
    """The answers to store with an adapter; `adapted` has to be in fp32."""
    rows = tuple(tuple(round(float(value), 6) for value in row) for row in golden_rows(adapted, inputs))
    return Golden(inputs=tuple(inputs), outputs=rows, tolerance=GOLDEN_TOLERANCE)


def golden_rows(adapted: Adapted, inputs: Sequence[Input]) -> list[NDArray[np.float32]]:
    """All numbers of the head for each input, one after the other, whatever their shape is."""
    encoded = adapted.encode_inputs(inputs)
    return _of_each_example(adapted.outputs_of(encoded), encoded)


def stored_drift(trained: Adapted, again: Adapted, inputs: Sequence[Input]) -> float:
    """Hold what was trained against what was loaded again from its folder: the largest difference of a number.

    Args:
        trained: the adapter as it was trained, in any precision.
        again: the folder, loaded in fp32 on a base of its own; its frozen weights get `trained`'s precision, in place.
        inputs: golden ones.

    Raises:
        DriftError: they differ by more than rounding, so that something of the model is not in the folder.
    """
    found = golden_rows(trained, inputs)
    chosen = round_base_(again.base, trained.precision)
    cast_frozen_(again.model, chosen.dtype, keep=again.base.float32_modules)
    stored = golden_rows(replace(again, precision=chosen), inputs)
    values, loaded = np.concatenate(found), np.concatenate(stored)
    largest = (
        float(np.abs(values - loaded).max(initial=0.0)) if values.shape == loaded.shape else float("nan")
    )
    elsewhere = 25 if trained.device != again.device and chosen.dtype != torch.float32 else 1
    limit = elsewhere * GOLDEN_TOLERANCE * max(1.0, float(np.abs(values).max(initial=0.0)))
    if not largest <= limit:  # so that NaN is too far as well
        raise DriftError(
            f"The adapter folder does not answer as the model that was trained: on {len(inputs)} inputs its numbers "
            f"differ by {largest:.1e} (limit {limit:.1e}), loaded in the same precision, {chosen.name}. Something that "
            "was learnt is not in the folder, so no adapter was written. Please report it with the base's name and the "
            "configuration."
        )
    return largest


def _of_each_example(outputs: Outputs, encoded: Encoded) -> list[NDArray[np.float32]]:
    features = [outputs[place].reshape(-1) for place in range(len(encoded))]
    if encoded.example is None:
        return features
    return [
        np.concatenate([features[place] for place in np.flatnonzero(encoded.example == number)])
        for number in range(encoded.examples)
    ]


def replay(adapted: Adapted, golden: Golden) -> None:
    """Answer the golden inputs again and compare.

    Raises:
        DriftError: an output differs by more than the tolerance.
        AdapterError: what is stored does not fit the adapter.
    """
    if not golden.inputs:
        return
    found = golden_rows(adapted, golden.inputs)
    stored = [np.asarray(row, dtype=np.float32) for row in golden.outputs]
    shapes = [len(row) for row in found], [len(row) for row in stored]
    if shapes[0] != shapes[1]:
        raise AdapterError(
            f"veneer.json stores golden outputs of the sizes {shapes[1]}, the adapter gives {shapes[0]}. "
            "The folder is damaged; train it again."
        )
    values = np.concatenate(stored)
    limit = golden.tolerance * max(1.0, float(np.abs(values).max(initial=0.0)))
    off = [float(np.abs(ours - theirs).max(initial=0.0)) for ours, theirs in zip(found, stored, strict=True)]
    if not max(off) <= limit or np.isnan(off).any():
        row = int(np.argmax(np.nan_to_num(np.asarray(off), nan=np.inf)))
        raise DriftError(
            f"This adapter does not answer as it did when it was stored: golden input {row} gives "
            f"{_listed(found[row])}, stored was {_listed(stored[row])} "
            f"(limit {limit:.1e}). Its files, its base or a library has changed; train it again, or load it with "
            f"{setting('call.verify', False)} if you know why."
        )


def _listed(row: NDArray[np.float32], most: int = 12) -> str:
    found = np.round(row, 4).tolist()
    return str(found) if len(found) <= most else f"{str(found[:most])[:-1]}, ... {len(found) - most} more]"
