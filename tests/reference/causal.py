"""Small random causal models of five families, and a tokenizer of bytes for them: what generation is held against."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["CAUSAL", "VOCABULARY", "byte_tokenizer", "causal_model"]

END = "<|end|>"
VOCABULARY = 257  # every byte, and the end
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 96, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
_GROUPED = _SIZES | {"num_key_value_heads": 2}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96,
         "bos_token_id": 256, "eos_token_id": 256},
    ),
    "llama": ("Llama", _GROUPED),
    "qwen2": ("Qwen2", _GROUPED | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 6}),
    "gpt_neox": ("GPTNeoX", _SIZES | {"rotary_pct": 0.5}),
}  # fmt: skip


def causal_model(family: str, seed: int = 0) -> Any:
    """A random model in eval mode, with weights large enough for lively answers."""
    name, options = CAUSAL[family]
    config = getattr(transformers, f"{name}Config")(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.25)
    return model.eval()


def byte_tokenizer(max_length: int = 96) -> transformers.PreTrainedTokenizerFast:
    """A token a byte, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, bos_token=END, model_max_length=max_length
    )
