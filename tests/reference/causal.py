"""Small random causal models of seven families, and a tokenizer of bytes for them: what generation is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

__all__ = ["CAUSAL", "CHAT_TEMPLATE", "VOCABULARY", "byte_tokenizer", "causal_base", "causal_model"]

END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '<|end|>' if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A short chat template, whose answers end with the end of text."""

VOCABULARY = 260  # every byte, the end, and room for tokens that a tokenizer of transformers adds
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 512, "bos_token_id": 256, "eos_token_id": 256,
}  # fmt: skip
_GROUPED = _SIZES | {"num_key_value_heads": 2}

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512,
         "bos_token_id": 256, "eos_token_id": 256},
    ),
    "llama": ("Llama", _GROUPED),
    "qwen2": ("Qwen2", _GROUPED | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 6}),
    "gpt_neox": ("GPTNeoX", _SIZES | {"rotary_pct": 0.5}),
    "gemma2": ("Gemma2", _GROUPED | {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 5.0}),
    "bloom": (
        "Bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 256,
         "eos_token_id": 256},
    ),
}  # fmt: skip


def causal_model(family: str, seed: int = 0) -> Any:
    """A random model in eval mode, with layers strong enough beside the embeddings that answers are no mere echo."""
    name, options = CAUSAL[family]
    config = getattr(transformers, f"{name}Config")(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            parameter.data.normal_(0.0, 0.1 if "wte" in name or "embed" in name else 0.5)
    return model.eval()


def byte_tokenizer(max_length: int = 96, *, begins: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A token a byte, and an end; with `begins` a token before every text, as Llama's has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if begins:
        raw.add_special_tokens([END])
        raw.post_processor = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, raw.token_to_id(END))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, bos_token=END, model_max_length=max_length
    )


def causal_base(
    folder: Path,
    family: str = "gpt2",
    *,
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
    max_length: int = 96,
    begins: bool = False,
) -> Path:
    """A random model with its tokenizer in a folder, as bases are published."""
    tokenizer = byte_tokenizer(max_length, begins=begins)
    tokenizer.chat_template = template
    causal_model(family).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
