"""Small bases that write, and small files of instructions, for the tests of the task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from reference.causal import CAUSAL, byte_tokenizer

__all__ = ["CHATML", "REASONING", "ROWS", "chat_tokenizer", "instruction_file", "writing_base"]

ROWS: list[dict[str, Any]] = [
    {"instruction": f"{verb} {thing}.", "input": about, "output": answer}
    for verb, thing, about, answer in (
        ("Name", "a colour", "", "Red."),
        ("Name", "a fruit", "", "An apple."),
        ("Correct", "the sentence", "He go home.", "He goes home."),
        ("Count", "to three", "", "One, two, three."),
        ("Correct", "the word", "freind", "friend"),
        ("Name", "a very large animal", "", "A blue whale, larger than all others."),
        ("Say", "yes", "", "Yes."),
        ("Turn", "it into capitals", "abc", "ABC"),
    )
]


def instruction_file(path: Path, rows: int = 8, **more: Any) -> Path:
    """A JSON file of so many rows, in Alpaca's columns; each differs."""
    found = [dict(ROWS[i % len(ROWS)]) for i in range(rows)]
    for number, row in enumerate(found[len(ROWS) :], start=1):
        row["instruction"] += f" ({number})"
    path.write_text(json.dumps([row | more for row in found]), encoding="utf-8")
    return path


def writing_base(
    folder: Path,
    family: str = "gpt2",
    *,
    template: str | None = None,
    positions: int = 512,
    spread: float = 0.1,
    seed: int = 0,
) -> Path:
    """A random causal model of two layers with a tokenizer of bytes, in a folder; `spread` of its weights."""
    tokenizer = byte_tokenizer(positions)
    tokenizer.chat_template = template
    name, options = CAUSAL[family]
    limit = "n_positions" if family == "gpt2" else "max_position_embeddings"
    config = getattr(transformers, f"{name}Config")(**(options | {limit: positions}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and name.endswith("weight")  # of a norm
            parameter.data.normal_(1.0 if gain else 0.0, spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REASONING = (  # as Qwen3: the last answer has its thoughts, earlier ones have not
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_tokenizer(template: str = CHATML) -> Any:
    """Bytes, with ChatML's two marks, the second of which is the end."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = template
    return tokenizer
