"""A module of torch as an ONNX graph, and the graph run by onnxruntime.

It knows padded token ids and logits; it knows no task and no adapter.

Shapes: B texts, L tokens of the longest.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veneer.errors import VeneerError
from veneer.models.load import quiet
from veneer.tasks.plain import padded

__all__ = ["GraphRunner", "graph_runner", "write_graph"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_ONE_FILE = 1_900_000_000  # bytes; a protobuf file holds less than 2 GiB


def write_graph(
    path: Path, module: nn.Module, *, token: int, padding: int, name: str, types: bool = False
) -> None:
    """The graph of opset 18 of a module that takes ids and mask (B, L) and gives logits; B and L are free.

    Args:
        path: the file; weights beyond 2 GB go into one beside it.
        module: in eval mode.
        token, padding: ids of an ordinary token and of padding, to trace with.
        name: of the model, for the message.
        types: the module takes token types (B, L) as well.

    Raises:
        VeneerError: torch can't write it.
    """
    ids, mask = padded([[token] * n for n in (7, 5)], padding)  # sizes of no meaning
    given = (ids, mask, ids * 0) if types else (ids, mask)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    try:
        with _quiet_export(), torch.no_grad():
            torch.onnx.export(
                module,
                given,
                path,
                input_names=_INPUTS[: len(given)],
                output_names=("logits",),
                dynamic_shapes=(free,) * len(given),
                opset_version=18,
                external_data=size > _ONE_FILE,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise VeneerError(
            f"torch can't write {name} as an ONNX graph ({str(error).strip().splitlines()[0][:200]}). "
            "Nothing was written. Merge the adapter instead (veneer merge) and export the model with another tool."
        ) from error


class GraphRunner(Protocol):
    """Token ids of B texts, and their token types where the graph takes any -> the graph's logits."""

    def __call__(
        self, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None, /
    ) -> NDArray[np.float32]: ...


def graph_runner(path: Path, padding: int) -> GraphRunner:
    """A function from the token ids of B texts to the graph's logits for them as one padded batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(
        texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None, /
    ) -> NDArray[np.float32]:
        given: list[Any] = [tensor.numpy() for tensor in padded(texts, padding)]
        if types is not None:
            given.append(padded(types, 0)[0].numpy())
        (logits,) = session.run(["logits"], dict(zip(_INPUTS, given, strict=False)))
        return np.asarray(logits, dtype=np.float32)

    return run


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Without the exporter's remarks on itself: the graph is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
