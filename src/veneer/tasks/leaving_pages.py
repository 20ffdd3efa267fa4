"""README.md of what leaves Veneer: a merged model, an ONNX file, a plain PEFT folder, a combined adapter.

This file knows Markdown and the facts; it writes and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from veneer.lora import Combined
from veneer.models.forms import HEAD_CLASSES
from veneer.models.heads import head_code
from veneer.tasks.adapted import Adapted
from veneer.tasks.classification import Classification
from veneer.tasks.drift import Drift
from veneer.tasks.entity_pages import onnx_entities_code

__all__ = [
    "combined_page",
    "merged_page",
    "merged_task_page",
    "onnx_entities_page",
    "onnx_page",
    "peft_page",
    "peft_task_page",
]

_POOLED = {
    "mean": "(states * inside).sum(1) / inside.sum(1)",
    "first": "states[:, 0]",
    "last": "states[torch.arange(len(states)), inside.sum(1).squeeze(-1) - 1]",
}


def merged_page(
    adapter: str, adapted: Adapted, task: Classification, dtype: torch.dtype, drift: Drift, native: bool
) -> str:
    """README.md of a merged model."""
    loading = (
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
        'base = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder").eval()\n'
        "labels = base.config.id2label\n"
    )
    return _page(
        {"library_name": "transformers", "base_model": adapted.base.name, "base_model_relation": "merge"},
        adapter,
        f"{adapted.base.name} with the LoRA adapter {adapter} merged into its weights ({_short(dtype)}). "
        f"{_task_line(task)} On {drift.texts} stored inputs its logits differ by at most {drift.largest:.1e} from the "
        "adapter's.",
        "" if native else _pooling_note(task),
        _usage("", loading, adapted, task, native),
    )


def merged_task_page(adapter: str, adapted: Adapted, dtype: torch.dtype, drift: Drift, native: bool) -> str:
    """README.md of a merged model that is no plain classifier."""
    card = adapted.kind.card(adapted)
    auto = HEAD_CLASSES[adapted.task.head.form].auto
    loading = (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
        f'model = {auto}.from_pretrained("path/to/this/folder").eval()\n'
    )
    return _page(
        {"library_name": "transformers", "base_model": adapted.base.name, "base_model_relation": "merge"},
        adapter,
        f"{adapted.base.name} with the LoRA adapter {adapter} merged into its weights ({_short(dtype)}): "
        f"{card.summary}. On {drift.texts} stored inputs its numbers differ by at most {drift.largest:.1e} from the "
        "adapter's.",
        ""
        if native
        else _pooling_note(adapted.task).replace(
            "Pool as below.", "The adapter's README.md pools as it has to."
        ),
        _fence(loading + _asking_code(adapted.task, native)),
        pipeline_tag=card.pipeline_tag,
    )


def _asking_code(task: Any, native: bool) -> str:
    """Python that asks `model`, behind the lines that load it; "" where a few lines can't say it."""
    if task.head.form == "sequence" and native:
        given = ", ".join(f'"{name}"' for name in task.inputs)
        return f'print(model(**tokenizer({given}, return_tensors="pt")).logits)\n'
    return _writing_code(task) if task.head.form == "causal" else ""


def _writing_code(task: Any) -> str:
    if task.data == "text" or task.template.origin == "none":
        asking = 'prompt = tokenizer("the text that goes on", return_tensors="pt")\n'
    else:
        asking = (
            'messages = [{"role": "user", "content": "what is asked"}]\n'
            "prompt = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
            ")\n"
        )
    return (
        f"{asking}answer = model.generate(**prompt, max_new_tokens=128, do_sample=False)\n"
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


def onnx_page(adapter: str, adapted: Adapted, drift: Drift, *, types: bool) -> str:
    """README.md of an ONNX export with an answer for each text, or pair of texts; `types`: it takes token types."""
    task: Any = adapted.task
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))
    texts = '["the first text"], ["the second text"]' if task.pair else '["the text to classify"]'
    if isinstance(task, Classification):
        means = (
            'labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))["labels"]\n',
            _answer_code(task),
            _task_line(task),
        )
    else:
        means = (
            'number = json.loads(Path("labels.json").read_text(encoding="utf-8"))\n',
            'print(number["mean"] + number["scale"] * float(logits[0, 0]))\n',
            f"It gives a number for each {'pair of texts' if task.pair else 'text'}.",
        )
    code = (
        "import json\nfrom pathlib import Path\n\n"
        "import numpy as np\nimport onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        f"{means[0]}"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f'text = tokenizer({texts}, padding=True, truncation=True, return_tensors="np")\n'
        f"given = {{name: text[name].astype(np.int64) for name in {names!r}}}\n"
        '(logits,) = session.run(["logits"], given)\n' + means[1]
    )
    inputs = ", ".join(f"`{name}`" for name in names[:-1]) + f" and `{names[-1]}`"
    return _page(
        {"library_name": "onnx", "base_model": adapted.base.name},
        adapter,
        f"{adapted.base.name} with the LoRA adapter {adapter} merged, as one ONNX graph: {inputs} "
        "(batch, length) int64, padded on the right, to `logits` (batch, outputs) float32. "
        f"{means[2]} The {task.pooling} pooling and the head are inside. With onnxruntime its logits differ by "
        f"at most {drift.largest:.1e} from the adapter's on {drift.texts} stored inputs.",
        "",
        _fence(code),
    )


def onnx_entities_page(adapter: str, adapted: Adapted, drift: Drift) -> str:
    """README.md of an ONNX export that labels words."""
    card = adapted.kind.card(adapted)
    return _page(
        {"library_name": "onnx", "base_model": adapted.base.name},
        adapter,
        f"{adapted.base.name} with the LoRA adapter {adapter} merged, as one ONNX graph: `input_ids` and "
        "`attention_mask` (batch, length) int64, padded on the right, to `logits` (batch, length, labels) float32: "
        f"{card.summary}. The label of a word is read at its first token. With onnxruntime its logits differ by "
        f"at most {drift.largest:.1e} from the adapter's on {drift.texts} stored inputs.",
        "",
        _fence(onnx_entities_code()),
        pipeline_tag=card.pipeline_tag,
    )


def peft_page(adapter: str, adapted: Adapted, task: Classification, native: bool) -> str:
    """README.md of a plain PEFT folder."""
    name = adapted.base.name
    loading = (
        f"tokenizer = AutoTokenizer.from_pretrained({name!r}, model_max_length={adapted.max_length})\n"
        "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token\n"
        f"base = AutoModelForSequenceClassification.from_pretrained({name!r}, num_labels={len(task.labels)})\n"
        "base.config.pad_token_id = tokenizer.pad_token_id\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()\n'
        f"labels = {list(task.labels)!r}\n"
    )
    return _page(
        {"library_name": "peft", "base_model": name},
        adapter,
        f"A LoRA adapter of {name}, in PEFT's format. {_task_line(task)} Texts are cut to {adapted.max_length} tokens.",
        "" if native else _pooling_note(task),
        _usage("from peft import PeftModel\n", loading, adapted, task, native),
    )


def peft_task_page(adapter: str, adapted: Adapted) -> str:
    """README.md of a plain PEFT folder that is no plain classifier."""
    card = adapted.kind.card(adapted)
    return _page(
        {"library_name": "peft", "base_model": adapted.base.name},
        adapter,
        f"A LoRA adapter of {adapted.base.name}, in PEFT's format: {card.summary}.",
        "",
        _fence(card.code),
        pipeline_tag=card.pipeline_tag,
    )


def combined_page(
    name: str, adapted: Adapted, weights: Mapping[str, float], made: Combined, native: bool
) -> str:
    """README.md of an adapter that was combined from others."""
    rows = "\n".join(f"| {Path(path).name} | {weight:g} |" for path, weight in weights.items())
    error = f"; the ranks' cut loses {made.error:.2%} of the sum" if made.error else ""
    table = f"| adapter | weight |\n|---|---|\n{rows}"
    card = adapted.kind.card(adapted)
    return _page(
        {"library_name": "peft", "base_model": adapted.base.name},
        name,
        f"A LoRA adapter of {adapted.base.name}, the weighted sum of the changes of {len(weights)} others (method "
        f"`{made.method}`{error}). It was not measured: `veneer evaluate` does that.\n\n{table}",
        "" if native else _pooling_note(adapted.task),
        _fence(card.commands[0].replace("ADAPTER", f"path/to/{name}") + "\n", "sh"),
        pipeline_tag=card.pipeline_tag,
    )


def _page(
    matter: dict[str, Any],
    title: str,
    what: str,
    note: str,
    code: str,
    *,
    pipeline_tag: str = "text-classification",
) -> str:
    matter = {**matter, "pipeline_tag": pipeline_tag, "tags": ["lora", "veneer"]}
    front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    return "\n\n".join(part for part in (f"---\n{front}---", f"# {title}", what, note, code) if part) + "\n"


def _task_line(task: Classification) -> str:
    kind = "any number of" if task.multi_label else "one of"
    return f"It gives a text {kind} {len(task.labels)} labels: {', '.join(f'`{label}`' for label in task.labels)}."


def _pooling_note(task: Any) -> str:
    return (
        f"**The head reads the {task.pooling} of the tokens' last states, which transformers' own class does not do:** "
        "`model(**batch).logits` gives other answers than this model was trained to give. Pool as below."
    )


def _usage(imports: str, loading: str, adapted: Adapted, task: Classification, native: bool) -> str:
    """Python that answers a text with transformers; `loading` makes `tokenizer`, `base` and `labels`."""
    begin = (
        f"import torch\n{imports}from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"{loading}"
        'batch = tokenizer(["the text to classify"], padding=True, truncation=True, return_tensors="pt")\n'
        "with torch.no_grad():\n"
    )
    if native:
        return _fence(begin + "    logits = base(**batch).logits\n" + _answer_code(task))
    return _fence(
        begin
        + "    states = base.base_model(**batch)[0]  # (batch, length, width)\n"
        + '    inside = batch["attention_mask"].unsqueeze(-1)\n'
        + f"    logits = {head_code(adapted.model, _POOLED[task.pooling])}\n"
        + _answer_code(task)
    )


def _answer_code(task: Classification) -> str:
    if not task.multi_label:
        return "print(labels[int(logits[0].argmax())])\n"
    edge = math.log(task.threshold / (1.0 - task.threshold)) if 0.0 < task.threshold < 1.0 else 0.0
    return (
        f"print([labels[i] for i, z in enumerate(logits[0]) if z >= {edge:.6g}])"
        f"  # sigmoid(z) >= {task.threshold:g}\n"
    )


def _fence(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}```"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
