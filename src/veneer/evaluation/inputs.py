"""What predictions must look like before anything is computed from them.

Knows shapes and ranges; not what is done with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.errors import DataError

__all__ = ["checked_multilabel", "checked_single"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def checked_single(
    targets: NDArray[Any], probabilities: NDArray[Any], labels: Sequence[str]
) -> tuple[Ints, Floats]:
    """Targets (N,) as int64 and probabilities (N, K) as float64; every fault in one DataError."""
    given, chances = np.asarray(targets), np.asarray(probabilities, dtype=np.float64)
    faults = _shape_faults(chances, labels)
    if given.ndim != 1 or len(given) != len(chances):
        faults.append(f"targets have shape {given.shape}, expected ({len(chances)},): one for each row")
    elif given.dtype.kind not in "iu":
        faults.append(f"targets are {given.dtype}, expected whole numbers: the index of each row's label")
    elif len(given) and not (given.min() >= 0 and given.max() < len(labels)):
        faults.append(f"targets go from {given.min()} to {given.max()}, expected 0 to {len(labels) - 1}")
    if not faults and np.abs(chances.sum(axis=1) - 1).max() > 1e-2:
        row = int(np.abs(chances.sum(axis=1) - 1).argmax())
        faults.append(f"the probabilities of row {row} sum to {chances[row].sum():.4f}, expected 1")
    _raise_faults(faults)
    return given.astype(np.int64), chances


def checked_multilabel(
    targets: NDArray[Any], probabilities: NDArray[Any], labels: Sequence[str]
) -> tuple[NDArray[np.bool_], Floats]:
    """Targets (N, K) as bool and probabilities (N, K) as float64; every fault in one DataError."""
    given, chances = np.asarray(targets), np.asarray(probabilities, dtype=np.float64)
    faults = _shape_faults(chances, labels)
    if given.shape != chances.shape:
        faults.append(
            f"targets have shape {given.shape}, expected {chances.shape}: a 0 or 1 for each label of a row"
        )
    elif not np.isin(given, (0, 1)).all():
        faults.append("targets hold other values than 0 and 1")
    _raise_faults(faults)
    return given.astype(np.bool_), chances


def _shape_faults(chances: Floats, labels: Sequence[str]) -> list[str]:
    if chances.ndim != 2 or chances.shape[1] != len(labels):
        return [f"probabilities have shape {chances.shape}, expected (rows, {len(labels)}): a column a label"]
    if len(chances) == 0:
        return ["there is no row to evaluate; expected at least one"]
    if not np.isfinite(chances).all():
        row = int(np.flatnonzero(~np.isfinite(chances).all(axis=1))[0])
        return [f"the probabilities of row {row} are not finite; the model's answer is broken"]
    if chances.min() < -1e-6 or chances.max() > 1 + 1e-2:
        return [f"probabilities go from {chances.min():.4g} to {chances.max():.4g}, expected 0 to 1; logits?"]
    return []


def _raise_faults(faults: list[str]) -> None:
    if faults:
        raise DataError("the predictions can't be evaluated: " + "; ".join(faults))
