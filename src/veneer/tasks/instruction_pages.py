"""What people read about instructions: tokens in a preview, samples, the model card, the report's own parts.

This file knows tokens and words for people; it measures nothing but what it is given.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from veneer.data.preview import ShownToken
from veneer.data.ragged import Ragged
from veneer.engine.generation import Sampling, TextGenerator
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Block, Folded, Paragraph, Preformatted, Section, Table
from veneer.evaluation.wording import shortened
from veneer.lora import disabled
from veneer.naming import setting
from veneer.tasks.base import Answer, Encoded, Outputs
from veneer.tasks.kind import Card, Findings, Told
from veneer.tasks.prompting import answer_ends
from veneer.tasks.rendered import Cut, Rendered

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = [
    "answer",
    "baselines",
    "card",
    "cut_says",
    "findings",
    "inspect_lines",
    "shown_tokens",
    "watch",
]

_WORST = 10
_SHOWN_CHARACTERS = 1_500


def shown_tokens(one: Rendered, kept: Rendered, cut: Cut, tokenizer: Any) -> tuple[ShownToken, ...]:
    """Every token of an example before its cut: what it stands for, whether it is read, whether the loss reads it."""
    lost = len(one.ids) - len(kept.ids)
    specials = set(tokenizer.all_special_ids)
    found = []
    names = tokenizer.convert_ids_to_tokens(one.ids)
    for place, (token, name) in enumerate(zip(one.ids, names, strict=True)):
        inside = place < len(kept.ids)
        target = one.read[place]
        if lost and cut == "left":
            inside = place < one.lead or place >= one.lead + lost
            target = target and place > one.lead + lost
        special = token in specials
        text = str(name) if special else _text_of(token, str(name), tokenizer)
        found.append(ShownToken(text, special=special, read=inside, target=target and inside))
    return tuple(found)


def _text_of(token: int, name: str, tokenizer: Any) -> str:
    """The characters of a token, with the blank before it; a part of a character has the tokenizer's own name."""
    if name.startswith("\u2581"):
        return name.replace("\u2581", " ")
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return name if "\ufffd" in text or not text else text


def _written(adapted: Adapted, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
    """What the model writes after each prompt, greedily, `most` tokens at most."""
    task: Any = adapted.task
    tokens, texts = answer_ends(task.template, adapted.base.tokenizer)
    generator = TextGenerator(
        adapted.model,
        adapted.base.tokenizer,
        limit=adapted.base.max_length,
        stop_tokens=tokens,
        stop=texts,
    )
    return [one.text for one in generator.generate(list(prompts), Sampling(max_new_tokens=most))]


def answer(adapted: Adapted, encoded: Encoded) -> list[Answer]:
    """What the model writes for prompts; for examples with their answers, how well those are foretold."""
    task: Any = adapted.task
    if encoded.targets is not None:
        return list(task.answers(adapted.outputs_of(encoded), encoded))
    prompts = [np.asarray(encoded[place]).tolist() for place in range(len(encoded))]
    return [{"answer": text} for text in _written(adapted, prompts, task.answer_tokens)]


def baselines(
    adapted: Adapted,
    train: Encoded,  # noqa: ARG001
    held_out: Encoded,
    outputs: Outputs,  # noqa: ARG001
    seed: int,
) -> tuple[Baseline, ...]:
    """What the base says without the adapter, to the same prompts in the same template."""
    began = time.perf_counter()
    with disabled(adapted.model):
        found = adapted.task.metrics(adapted.outputs_of(held_out), held_out, seed=seed)
    return (Baseline("the base alone", found.summary(), time.perf_counter() - began),)


def cut_says(task: Any) -> str:
    """What is lost of a long example."""
    lost = {"left": "the beginning", "right": "the end"}[task.cut]
    return f"{lost} of a longer example is not seen ({setting('options.cut', task.cut)})"


def watch(adapted: Adapted, encoded: Encoded) -> list[dict[str, str]]:
    """What the model writes for a few fixed prompts: asked, expected, written."""
    task: Any = adapted.task
    chosen = _chosen(encoded, task.samples)
    if not chosen:
        return []
    tokenizer = adapted.base.tokenizer
    prompts, expected = [], []
    for place in chosen:
        ids = np.asarray(encoded[place]).tolist()
        start = int(encoded.details.asked[place]) or max(1, len(ids) // 2)
        prompts.append(ids[:start])
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    most = min(task.answer_tokens, max(8, 2 * max(len(encoded[place]) for place in chosen)))
    answers = _written(adapted, prompts, most)
    asked = [tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
    return [
        {"asked": one, "expected": wanted, "written": answer}
        for one, wanted, answer in zip(asked, expected, answers, strict=True)
    ]


def _chosen(encoded: Encoded, n: int) -> list[int]:
    """A few features, the same at every evaluation, spread over all; not those whose prompt is cut away."""
    if not n:
        return []
    asked, lengths = np.asarray(encoded.details.asked), np.asarray(encoded.lengths)
    fits = np.flatnonzero((lengths > 2) & (asked < lengths))
    return (
        np.unique(fits[np.linspace(0, len(fits) - 1, min(n, len(fits))).astype(np.int64)]).tolist()
        if len(fits)
        else []
    )


def card(adapted: Adapted) -> Card:
    """For the model card."""
    task: Any = adapted.task
    name = adapted.base.name
    writes = "text that goes on as the texts it learnt" if task.data == "text" else "answers to instructions"
    limits = [
        "It writes what is likely after what it learnt; what it says may be wrong.",
        f"Prompt and answer together have {adapted.base.max_length} tokens at most.",
    ]
    if task.template.origin in ("alpaca", "given"):
        limits.append(
            f"Prompts have to be written in {task.template.says}, which is stored in veneer.json (task_facts.template)."
        )
    return Card(
        summary=writes,
        pipeline_tag="text-generation",
        code=_code(name, task),
        limits=tuple(limits),
        commands=(
            'veneer generate ADAPTER "a prompt"',
            "veneer chat ADAPTER",
            "veneer evaluate ADAPTER more.json",
        ),
    )


def _code(name: str, task: Any) -> str:
    lines = [
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
        f"base = AutoModelForCausalLM.from_pretrained({name!r})",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()',
    ]
    if task.template.origin == "none":
        lines.append('batch = tokenizer("the beginning of a text", return_tensors="pt")')
    else:
        given = ""
        if task.template.origin != "base":
            lines.append("# the template that the adapter was trained with, from veneer.json")
            lines.append("import json")
            lines.append(
                'template = json.load(open("path/to/this/folder/veneer.json"))["task_facts"]["template"]["source"]'
            )
            given = "chat_template=template, "
        lines += [
            'messages = [{"role": "user", "content": "the instruction"}]',
            f"text = tokenizer.apply_chat_template(messages, {given}tokenize=False, add_generation_prompt=True)",
            f'batch = tokenizer(text, add_special_tokens={not task.template.writes_specials}, return_tensors="pt")',
        ]
    lines += [
        "with torch.no_grad():",
        f"    found = model.generate(**batch, max_new_tokens={task.answer_tokens}, do_sample=False)",
        'print(tokenizer.decode(found[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines) + "\n"


def findings(told: Told) -> Findings:
    """Samples of every evaluation, and the answers that are foretold least."""
    parts = (_samples(told.history), _worst(told))
    return Findings(sections=tuple(part for part in parts if part is not None))


def _samples(history: Sequence[Mapping[str, Any]]) -> Section | None:
    seen = [entry for entry in history if entry.get("samples")]
    if not seen:
        return None
    last = seen[-1]["samples"]
    blocks: list[Block] = [
        Paragraph("Greedy answers to the same prompts of the validation part, at each evaluation.", "note")
    ]
    for number, one in enumerate(last):
        rows = tuple((f"{entry['step']:,}", _legible(entry["samples"][number]["written"])) for entry in seen)
        first = Preformatted(shortened(one["asked"], _SHOWN_CHARACTERS))
        expected = ("expected", _legible(one["expected"]))
        few = rows if len(rows) <= 4 else (rows[0], rows[len(rows) // 2], rows[-1])
        blocks += [first, Table(("step", "answer"), (*few, expected), texts=(1,))]
        if len(rows) > 4:
            blocks.append(
                Folded(f"all {len(rows)} evaluations", (Table(("step", "answer"), rows, texts=(1,)),))
            )
    return Section("What it writes", tuple(blocks))


def _legible(text: str) -> str:
    """A text with long runs of line breaks counted: a base that is not trained writes nothing else.

    >>> _legible("a" + 5 * "\\n" + "b")
    'a\\n⏎ × 5\\nb'
    """
    return re.sub(r"\n{4,}", lambda run: f"\n⏎ × {len(run[0])}\n", text)


def _worst(told: Told) -> Section | None:
    task: Any = told.adapted.task
    outputs = told.outputs
    if not task.has_answers or not isinstance(outputs, Ragged):
        return None
    tokenizer = told.adapted.base.tokenizer
    means = np.array([outputs[place][:, 0].mean() for place in range(len(outputs))])
    rows = []
    for place in np.argsort(-means, kind="stable")[:_WORST].tolist():
        ids, begin = np.asarray(told.encoded[place]).tolist(), int(told.encoded.details.asked[place])
        rows.append(
            (
                f"{int(told.rows.rows[place]) + 1:,}",
                f"{means[place]:.2f}",
                shortened(tokenizer.decode(ids[:begin], skip_special_tokens=True)[-300:], 300),
                shortened(tokenizer.decode(ids[begin:], skip_special_tokens=True), 300),
            )
        )
    table = Table(("row", "loss", "asked", "expected"), tuple(rows), numeric=(0, 1), texts=(2, 3))
    return Section("Answers it foretells least", (table,))


def inspect_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of `veneer inspect`, from the facts of the task."""
    from veneer.tasks.templates import Template

    template = Template.from_dict(facts["template"])
    whole = facts["data"] == "text" or facts["reads_loss"] == "all"
    reads = "every token" if whole else "the answers and their ends"
    return [
        (
            "learnt from",
            {"text": "texts", "messages": "chat messages"}.get(facts["data"], "prompts and answers"),
        ),
        ("template", template.says),
        ("loss reads", reads),
        ("long examples", "cut into blocks" if facts["data"] == "text" else f"cut on the {facts['cut']}"),
    ]
