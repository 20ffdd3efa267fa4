"""Fast tokenizers of the main families for tests, made here: word pieces, bytes with and without a blank before the
first word, and sentence pieces without a pre-tokenizer (Llama's form, whose `word_ids` say nothing).
"""

from __future__ import annotations

import string
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["TOKENIZERS"]

_WORDS = ["the", "new", "york", "paul", "ran", "in", "don", "at", "er", "an"]


def bert() -> PreTrainedTokenizerFast:
    """Word pieces; blanks, accents and control characters go, every sign stands alone."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters), *_WORDS]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _bytes(merges: list[tuple[str, str]], special: tuple[str, ...] = (), **options: bool) -> Tokenizer:
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    raw = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    raw.decoder = decoders.ByteLevel()
    return raw


_MERGES = [("Ġ", "p"), ("n", "e"), ("ne", "w"), ("'", "s"), ("'", "t"), ("Ġ", "("), (".", ","), ("ð", "Ł")]


def gpt2() -> PreTrainedTokenizerFast:
    """Bytes; a blank belongs to the word after it, also in the offsets; no special tokens."""
    raw = _bytes(_MERGES, add_prefix_space=False)
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")


def roberta() -> PreTrainedTokenizerFast:
    """Bytes with a blank before the first word, offsets without blanks, special tokens at both ends."""
    raw = _bytes(_MERGES, ("<s>", "<pad>", "</s>"), add_prefix_space=True)
    raw.post_processor = processors.RobertaProcessing(
        ("</s>", raw.token_to_id("</s>")),
        ("<s>", raw.token_to_id("<s>")),
        trim_offsets=True,
        add_prefix_space=True,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", cls_token="<s>", sep_token="</s>", add_prefix_space=True
    )


def llama() -> PreTrainedTokenizerFast:
    """Sentence pieces with bytes for what they do not know, no pre-tokenizer, one special token before the text."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    merges = [("▁", "p"), ("n", "e"), ("ne", "w"), ("▁", "t"), ("'", "s")]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *bytes_,
        "▁",
        *string.printable.strip(),
        *("".join(merge) for merge in merges),
    ]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bert": bert, "gpt2": gpt2, "roberta": roberta, "llama": llama
}  # fmt: skip
