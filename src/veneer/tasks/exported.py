"""From an adapter folder to what other programs read: an ONNX graph, or PEFT's two files and nothing else.

The ONNX graph is the plain padded computation with merged weights, its pooling and head inside; it is run with
onnxruntime on the golden inputs before it is put into place. This file joins adapters and formats; it knows no
terminal.

Shapes: B texts, L tokens of the longest, K labels.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from veneer.adapter import CONFIG, TENSORS, read_adapter
from veneer.errors import MissingExtraError, UserMistake
from veneer.files import refuse_existing, replacing_folder, write_bytes, write_text
from veneer.models.heads import native_pooling
from veneer.models.load import load_tokenizer
from veneer.tasks.adapted import Adapted
from veneer.tasks.classification import Classification
from veneer.tasks.drift import Drift, Reference, classification_of
from veneer.tasks.encoding import encode_texts
from veneer.tasks.leaving_pages import onnx_page, peft_page, peft_task_page
from veneer.tasks.loading import load
from veneer.tasks.merged import is_plain_classifier, merge_into_base_, write_tokenizer
from veneer.tasks.onnx_graph import graph_runner, write_graph
from veneer.tasks.plain import PlainClassifier

__all__ = ["ExportFormat", "Exported", "export_adapter"]

ExportFormat = Literal["onnx", "peft"]
MODEL, LABELS = "model.onnx", "labels.json"
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder.
        format: "onnx" or "peft".
        files: names, sorted.
        size_bytes: of all of them.
        drift: how far the graph's answers are from the adapter's; None for PEFT, whose tensors are the same.
        warnings: what to look at.
    """

    path: Path
    format: ExportFormat
    files: tuple[str, ...]
    size_bytes: int
    drift: Drift | None
    warnings: tuple[str, ...]


def export_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    format: ExportFormat,
    base: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write an adapter in another program's format.

    Args:
        adapter: an adapter folder, ours or PEFT's.
        out: the folder to write.
        format: "onnx": model.onnx (base, adapter, pooling and head as one graph in fp32; batch and length are free),
            labels.json and the tokenizer; "peft": adapter_config.json and adapter_model.safetensors, byte for byte as
            they are (adapters with q/k/v slices or PiSSA are ordinary LoRA there). Both with a README.md.
        base: where the base lies, if not where the adapter says.
        overwrite: whether an export there may be replaced.

    Raises:
        MissingExtraError: "onnx" without the packages of the extra.
        UserMistake: something stands at `out`; an unknown format; "onnx" of an adapter that neither classifies nor
            finds entities.
        DriftError: the graph does not answer as the adapter does. Nothing is left.
        AdapterError, BaseError: as for `load`.
    """
    adapter, out = Path(adapter), Path(out)
    if format not in ("onnx", "peft"):
        raise UserMistake(f"format={format!r} is not known: expected 'onnx' or 'peft'.")
    if format == "onnx" and not all(importlib.util.find_spec(name) for name in _PACKAGES):
        raise MissingExtraError("Export to ONNX", "onnx")
    marker, what = (MODEL, "an ONNX export") if format == "onnx" else (CONFIG, "an adapter")
    refuse_existing(out, marker=marker, what=what, overwrite=overwrite)
    if out.resolve() == adapter.resolve():
        raise UserMistake(f"{out} is the adapter itself. Choose another place for the export.")
    adapted = load(adapter, base=base, precision="fp32", mode="padded")
    with replacing_folder(out) as folder:
        if format == "onnx":
            drift: Drift | None = _write_onnx(folder, adapter.name, adapted)
            found: tuple[str, ...] = ()
        else:
            drift, found = None, _write_peft(folder, adapter, adapted)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        size = sum(file.stat().st_size for file in files)
        names = tuple(str(file.relative_to(folder)) for file in files)
    return Exported(out, format, names, size, drift, found)


def _write_onnx(folder: Path, name: str, adapted: Adapted) -> Drift:
    if adapted.task.head.form == "tokens":
        from veneer.tasks.exported_entities import write_entities

        return write_entities(folder, name, adapted, graph=MODEL, labels=LABELS)
    task = classification_of(adapted, "veneer export --format onnx")
    reference = Reference.of(adapted)
    merge_into_base_(adapted)
    write_tokenizer(folder, adapted)
    _write_graph(folder / MODEL, adapted, task, reference.ids[0][0])
    labels = {
        "labels": list(task.labels),
        "multi_label": task.multi_label,
        "threshold": task.threshold if task.multi_label else None,
        "max_length": adapted.max_length,
    }
    write_text(folder / LABELS, json.dumps(labels, indent=2, ensure_ascii=False) + "\n")
    stored = encode_texts(load_tokenizer(folder), reference.texts, adapted.max_length)
    reference.check_tokens(stored, what="The ONNX export")
    drift = reference.drift(_run_graph(folder / MODEL, reference, adapted), what="The ONNX graph")
    write_text(folder / "README.md", onnx_page(name, adapted, task, drift))
    return drift


def _write_graph(path: Path, adapted: Adapted, task: Classification, token: int) -> None:
    """The graph of opset 18; batch and length are free."""
    model: Any = adapted.model
    model.config.use_cache = False
    module = PlainClassifier(model, task.pooling).eval()
    write_graph(
        path, module, token=token, padding=int(model.config.pad_token_id or 0), name=type(model).__name__
    )


def _run_graph(path: Path, reference: Reference, adapted: Adapted) -> NDArray[np.float32]:
    """(N, K) by onnxruntime: each text alone; and all as one batch, which has to be the same.

    The batch's answers are returned where they are further off.
    """
    model: Any = adapted.model
    run = graph_runner(path, int(model.config.pad_token_id or 0))
    alone = np.concatenate([run([ids]) for ids in reference.ids])
    together = run(reference.ids)
    off = [np.abs(found - reference.logits).max(axis=1, keepdims=True) for found in (alone, together)]
    worse: NDArray[np.float32] = np.where(off[0] >= off[1], alone, together)
    return worse


def _write_peft(folder: Path, adapter: Path, adapted: Adapted) -> tuple[str, ...]:
    for name in (CONFIG, TENSORS):
        write_bytes(folder / name, (adapter / name).read_bytes())
    task: Any = adapted.task
    native = adapted.base.spec.form != "sequence" or native_pooling(adapted.model) == task.pooling
    if is_plain_classifier(adapted):
        page = peft_page(adapter.name, adapted, task, native)
    else:
        page = peft_task_page(adapter.name, adapted)
    write_text(folder / "README.md", page)
    read_adapter(folder)  # strict: a fault in what was written shows here
    if native:
        return ()
    return (
        f"this adapter's head reads the {task.pooling} of the tokens' states, which transformers' own class does not "
        "do. README.md has the code that does.",
    )
