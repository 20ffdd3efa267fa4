"""An adapter that gives an answer for each text, or each pair of texts, as an ONNX graph, checked on the golden inputs.

The graph is the plain padded computation with merged weights, its pooling and head inside. Where the tokenizer tells
two texts apart by token types, they are a third input. This file joins an adapter in its place and a graph; it knows
no terminal.

Shapes: B texts, L tokens of the longest, K outputs of the head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.files import write_text
from veneer.models.load import load_tokenizer
from veneer.tasks.adapted import Adapted
from veneer.tasks.base import Encoded
from veneer.tasks.classification import Classification
from veneer.tasks.drift import Drift
from veneer.tasks.leaving_pages import onnx_page
from veneer.tasks.merged import merge_into_base_, write_tokenizer
from veneer.tasks.onnx_graph import graph_runner, write_graph
from veneer.tasks.plain import PlainClassifier
from veneer.tasks.replayed import Replay

__all__ = ["write_texts"]


def write_texts(folder: Path, name: str, adapted: Adapted, *, graph: str, labels: str) -> Drift:
    """Write the graph, what its outputs mean, the tokenizer and README.md; run the graph on the golden inputs.

    Args:
        folder: where to.
        name: of the adapter.
        adapted: in fp32, for classification or regression; its model is merged in place.
        graph, labels: names of files.

    Raises:
        DriftError: the graph does not answer as the adapter does.
    """
    task: Any = adapted.task
    replay = Replay.of(adapted)
    types = replay.encoded.segments is not None
    merge_into_base_(adapted)
    model: Any = adapted.model
    model.config.use_cache = False
    padding = int(model.config.pad_token_id or 0)
    write_tokenizer(folder, adapted)
    write_graph(
        folder / graph,
        PlainClassifier(model, task.pooling).eval(),
        token=int(replay.encoded[0][0]),
        padding=padding,
        name=type(model).__name__,
        types=types,
    )
    facts = {**_meaning(task), "max_length": adapted.max_length, "inputs": list(task.inputs)}
    write_text(folder / labels, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    encoded = task.encode_inputs(replay.inputs, load_tokenizer(folder), adapted.max_length)
    replay.check_tokens(encoded, what="The ONNX export")
    drift = replay.compared(_run(folder / graph, replay, padding), what="The ONNX graph")
    write_text(folder / "README.md", onnx_page(name, adapted, drift, types=types))
    return drift


def _meaning(task: Any) -> dict[str, Any]:
    """What the outputs of the head mean."""
    if not isinstance(task, Classification):
        return {"mean": task.mean, "scale": task.scale}
    return {
        "labels": list(task.labels),
        "multi_label": task.multi_label,
        "threshold": task.threshold if task.multi_label else None,
    }


def _run(path: Path, replay: Replay, padding: int) -> NDArray[np.float32]:
    """(B, K) by onnxruntime: each input alone; and all as one batch, which has to be the same.

    The batch's numbers are given where they are further off.
    """
    run = graph_runner(path, padding)
    ids, types = _lists(replay.encoded)
    alone = np.concatenate(
        [run([own], None if types is None else [types[place]]) for place, own in enumerate(ids)]
    )
    together = run(ids, types)
    wanted = np.asarray(replay.outputs)
    off = [np.abs(found - wanted).max(axis=1, keepdims=True) for found in (alone, together)]
    worse: NDArray[np.float32] = np.where(off[0] >= off[1], alone, together)
    return worse


def _lists(encoded: Encoded) -> tuple[list[list[int]], list[list[int]] | None]:
    """Token ids and, where there are any, token types."""
    places = range(len(encoded))
    ids = [np.asarray(encoded[place]).tolist() for place in places]
    if encoded.segments is None:
        return ids, None
    return ids, [np.asarray(encoded.segments[place]).tolist() for place in places]
