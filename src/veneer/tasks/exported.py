"""From an adapter folder to what other programs read: an ONNX graph, or PEFT's two files and nothing else.

A graph is run with onnxruntime on the golden inputs before it is put into place. This file chooses formats and places;
it knows no terminal.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from veneer.adapter import CONFIG, TENSORS, read_adapter
from veneer.errors import MissingExtraError, UserMistake
from veneer.files import refuse_existing, replacing_folder, write_bytes, write_text
from veneer.models.heads import native_pooling
from veneer.naming import setting
from veneer.tasks.adapted import Adapted
from veneer.tasks.drift import Drift
from veneer.tasks.exported_entities import write_entities
from veneer.tasks.exported_texts import write_texts
from veneer.tasks.leaving_pages import peft_page, peft_task_page
from veneer.tasks.loading import load
from veneer.tasks.merged import is_plain_classifier

__all__ = ["ExportFormat", "Exported", "export_adapter"]

ExportFormat = Literal["onnx", "peft"]
MODEL, LABELS = "model.onnx", "labels.json"
_ASKED = ({"question": "a", "context": "b"},)
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
        UserMistake: something stands at `out`; an unknown format; "onnx" of an adapter that writes or
            answers questions.
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
        return write_entities(folder, name, adapted, graph=MODEL, labels=LABELS)
    if adapted.task.head.form == "sequence":
        return write_texts(folder, name, adapted, graph=MODEL, labels=LABELS)
    raise UserMistake(
        f"{setting('call.format', 'onnx')} works for classification, regression and entities; this adapter is for "
        f"{adapted.task.name}. Merge it (veneer merge) and export the model with another tool, or use it with PEFT: "
        "its folder is an ordinary PEFT adapter."
    )


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
    found = []
    if adapted.task.head.form == "span" and adapted.encode_inputs(_ASKED).segments is not None:
        found.append(
            "this adapter tells question and context apart by token types, which PEFT's own class for answers (0.21) "
            "drops; call model.base_model(**batch), as README.md does. Veneer, too, reads this export as PEFT does, "
            "without them: for Veneer keep the adapter folder."
        )
    if native:
        return tuple(found)
    return (
        *found,
        f"this adapter's head reads the {task.pooling} of the tokens' states, which transformers' own class does not "
        "do. README.md has the code that does.",
    )
