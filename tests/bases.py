"""Small random bases for the tests: a transformers model with its tokenizer in a folder, made in well under a second.

Nothing is downloaded and nothing is trained. The folders are ordinary ones: `load_base`, transformers and PEFT read
them. Word pieces are single characters and a few whole words, so that every text has tokens.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

__all__ = ["WORDS", "tiny_bert", "tiny_gpt2"]

WORDS = [
    "the",
    "a",
    "i",
    "you",
    "to",
    "my",
    "is",
    "it",
    "not",
    "and",
    "for",
    "win",
    "prize",
    "free",
    "call",
    "now",
    "order",
    "late",
    "money",
    "refund",
    "help",
    "thanks",
    "good",
    "bad",
    "film",
    "great",
    "awful",
    "love",
    "hate",
]
"""Whole words in the vocabulary of `tiny_bert`."""


def tiny_bert(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 2,
    max_length: int = 64,
    words: Sequence[str] = WORDS,
    labels: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a random BERT (some 26 thousand parameters) and its tokenizer into `folder`, and return it.

    Without `labels` it is a bare encoder, as bases are published; with it, it carries a classification head.
    """
    tokenizer = _word_pieces(words, max_length)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=labels or 2,
    )
    return _written(folder, BertForSequenceClassification if labels else BertModel, config, tokenizer, seed)


def tiny_gpt2(
    folder: Path, *, layers: int = 2, hidden: int = 32, heads: int = 2, max_length: int = 64, seed: int = 0
) -> Path:
    """Write a random GPT-2 (some 36 thousand parameters) with a tokenizer of bytes into `folder`, and return it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=end, bos_token=end, model_max_length=max_length
    )
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _written(folder, GPT2Model, config, tokenizer, seed)


def _word_pieces(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*specials, *characters, *(f"##{c}" for c in characters), *(w for w in words if len(w) > 1)]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
    )


def _written(folder: Path, kind: Any, config: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
