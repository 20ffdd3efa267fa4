"""Small data and small random bases for the tests of entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers_of_families import TOKENIZERS

__all__ = ["FAMILIES", "entity_base", "write_conll"]

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("Bert", "bert", {**_SIZES, "max_position_embeddings": 64}),
    "RoBERTa": ("Roberta", "roberta", {**_SIZES, "max_position_embeddings": 66, "type_vocab_size": 1}),
    "GPT-2": ("GPT2", "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "Llama": ("Llama", "llama", {**_SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}),
}
"""transformers' name of a family, its tokenizer, and the sizes of a small one."""


def entity_base(folder: Path, family: str, *, lively: bool = True) -> Path:
    """A random bare encoder or decoder with its tokenizer, as bases are published.

    `lively`: with large weights, so that no gradient is near zero; else as they are drawn before training.
    """
    name, tokens, options = FAMILIES[family]
    tokenizer = TOKENIZERS[tokens]()
    tokenizer.model_max_length = 64
    more: dict[str, Any] = {} if tokenizer.pad_token_id is None else {"pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, f"{name}Config")(**options, **more, vocab_size=len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if lively and parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_PEOPLE, _PLACES = ["Paul", "Ann Lee", "Zoé"], ["Rome", "New York", "Oslo"]
_FORMS = [
    "{p} ran in {l} .",
    "the {l} in {p} 's {l}",
    "{p} , {p} and {p} !",
    "don't ask {p} at {l}",
    "in the house",
]


def write_conll(path: Path, n: int = 60, seed: int = 0) -> Path:
    """Sentences about people and places, which a model can learn in seconds."""
    rng = np.random.default_rng(seed)
    blocks = []
    for number in range(n):
        lines = []
        for word in _FORMS[number % len(_FORMS)].split():
            names = {"{p}": ("per", _PEOPLE), "{l}": ("loc", _PLACES)}
            if word not in names:
                lines.append(f"{word}\tO")
                continue
            kind, known = names[word]
            parts = str(rng.choice(known)).split()
            lines += [f"{part}\t{'I' if place else 'B'}-{kind}" for place, part in enumerate(parts)]
        blocks.append("\n".join([f"n{100 * seed + number}\tO", *lines]))
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path
