"""An adapter of entities as an ONNX graph: a row of logits for each token, checked on the golden inputs.

This file joins an adapter in its place and a graph; it knows no terminal.

Shapes: M windows, L tokens of one, S tokens that are read, K labels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from veneer.data.ragged import Ragged
from veneer.files import write_text
from veneer.models.forms import token_logits
from veneer.models.load import load_tokenizer
from veneer.tasks.adapted import Adapted
from veneer.tasks.drift import Drift
from veneer.tasks.entities import Entities
from veneer.tasks.leaving_pages import onnx_entities_page
from veneer.tasks.merged import merge_into_base_, write_tokenizer
from veneer.tasks.onnx_graph import graph_runner, write_graph
from veneer.tasks.replayed import Replay
from veneer.tasks.word_tokens import UNREAD

__all__ = ["write_entities"]


class _Tagger(nn.Module):
    """Base and head: ids and mask (M, L) int64 -> logits (M, L, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Padded on the right; the logits of padding mean nothing."""
        model: Any = self.model
        return token_logits(model, model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0])


def write_entities(folder: Path, name: str, adapted: Adapted, *, graph: str, labels: str) -> Drift:
    """Write the graph, the labels, the tokenizer and README.md; run the graph on the golden inputs.

    Args:
        folder: where to.
        name: of the adapter.
        adapted: in fp32; its model is merged in place.
        graph, labels: names of files.

    Raises:
        DriftError: the graph does not answer as the adapter does.
    """
    task = adapted.task
    assert isinstance(task, Entities)
    replay = Replay.of(adapted)
    merge_into_base_(adapted)
    model: Any = adapted.model
    model.config.use_cache = False
    padding = int(model.config.pad_token_id or 0)
    write_tokenizer(folder, adapted)
    token = int(replay.encoded[0][0])
    write_graph(
        folder / graph, _Tagger(model).eval(), token=token, padding=padding, name=type(model).__name__
    )
    facts = {"labels": list(task.labels), "words": task.words, "max_length": adapted.max_length}
    write_text(folder / labels, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    encoded = task.encode_inputs(replay.inputs, load_tokenizer(folder), adapted.max_length)
    replay.check_tokens(encoded, what="The ONNX export")
    drift = replay.compared(_run(folder / graph, replay, padding), what="The ONNX graph")
    write_text(folder / "README.md", onnx_entities_page(name, adapted, drift))
    return drift


def _run(path: Path, replay: Replay, padding: int) -> Ragged:
    """What the graph says at the tokens that are read: of each window alone, or of all as one batch, whichever is
    further off.
    """
    run = graph_runner(path, padding)
    encoded, reads, wanted = replay.encoded, replay.encoded.targets, replay.outputs
    assert isinstance(reads, Ragged)
    assert isinstance(wanted, Ragged)
    ids = [encoded[place].tolist() for place in range(len(encoded))]
    together = run(ids)
    found = []
    for place, own in enumerate(ids):
        marks = reads[place] != UNREAD
        pair = [run([own])[0][marks], together[place, : len(own)][marks]]
        off = [float(np.abs(one - wanted[place]).max(initial=0.0)) for one in pair]
        found.append(pair[int(np.argmax(off))])
    return Ragged.of(found, np.float32)
