"""GPT-2 for a recipe: its published weights where they can be had, or random ones of any size, and its tokenizer.

Everything is found before anything is loaded, so that a recipe that can't run says so in its first second.
Knows where models lie; knows no data and no training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from veneer.errors import BaseError
from veneer.models.gpt import GPT, SIZES, GPTConfig
from veneer.models.gpt_weights import load_gpt
from veneer.models.load import load_tokenizer, quiet
from veneer.models.locate import locate
from veneer.naming import setting
from veneer.recipes.options import Options

__all__ = ["END_OF_TEXT", "GREETING", "MEANINGLESS", "Gpt2", "find_gpt2"]

HUB_NAME = "openai-community/gpt2"
END_OF_TEXT = 50256
MEANINGLESS = "The weights are random: the accuracies and losses mean nothing, only counts and speed do."
GREETING = (
    "Every effort moves you",
    " forward.\n\nThe first step is to understand the importance of your work",
)
"""GPT-2 small continues the first greedily by the second, 15 tokens."""

_TINY = GPTConfig(emb_dim=32, n_heads=2, n_layers=3)

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Gpt2:
    """What was found.

    Attributes:
        name: of the base, for files and for people.
        folder: of the weights; None: random.
        config: sizes where the weights are random.
        encode: texts -> token ids.
        decode: token ids -> text.
    """

    name: str
    folder: Path | None
    config: GPTConfig
    encode: Encode
    decode: Callable[[Sequence[int]], str]

    @property
    def random(self) -> bool:
        """Whether accuracies mean nothing."""
        return self.folder is None

    def facts(self) -> dict[str, Any]:
        """What every result says about its base."""
        found = {"base": self.name, "random_weights": self.random}
        return found | {"note": MEANINGLESS} if self.random else found

    def language_model(self, seed: int) -> GPT:
        """GPT-2 as the book writes it, with its own output head."""
        if self.folder is not None:
            return load_gpt(self.folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GPT(self.config).eval()

    def transformers_classifier(self, seed: int) -> Any:
        """transformers' GPT2ForSequenceClassification with a fresh head of two labels, in eval mode."""
        from transformers import GPT2Config, GPT2ForSequenceClassification

        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.folder is None:
                c = self.config
                config = GPT2Config(n_embd=c.emb_dim, n_head=c.n_heads, n_layer=c.n_layers, num_labels=2)
                model = GPT2ForSequenceClassification(config)
            else:
                model, info = GPT2ForSequenceClassification.from_pretrained(
                    self.folder, num_labels=2, dtype=torch.float32, use_safetensors=True,
                    output_loading_info=True,
                )  # fmt: skip
                missing = sorted(set(info["missing_keys"]) - {"score.weight"})
                if missing:
                    raise BaseError(
                        f"{self.name} does not fill GPT-2: {', '.join(missing[:3])} of its "
                        f"{len(missing)} missing tensors. Give the folder of a whole GPT-2 with "
                        f"{setting('call.model')}."
                    )
        model.config.pad_token_id = END_OF_TEXT
        return model.eval()


def find_gpt2(options: Options) -> Gpt2:
    """Find weights and tokenizer; loads the tokenizer only.

    Raises:
        BaseError: they can't be had from here; one sentence with the mend.
    """
    folder = None if options.random_weights else _weights(options)
    encode, decode = _tokenizer(options, folder)
    if folder is None:
        config = _TINY if options.size == "tiny" else SIZES[options.size]
        return Gpt2(f"GPT-2 {options.size}, random weights", None, config, encode, decode)
    return Gpt2(options.model or HUB_NAME, folder, SIZES["124M"], encode, decode)


def _weights(options: Options) -> Path:
    try:
        return locate(options.model or HUB_NAME).folder
    except BaseError as error:
        if options.model is not None:
            raise
        raise BaseError(
            "GPT-2's weights are not on this machine and the hub can't be reached: give their folder with "
            f"{setting('call.model', 'PATH')}, or run with {setting('call.random_weights', True)} to see everything "
            "but the accuracies."
        ) from error


def _tokenizer(options: Options, folder: Path | None) -> tuple[Encode, Callable[[Sequence[int]], str]]:
    if options.tokenizer is not None:
        return _from_files(options.tokenizer)
    try:
        tokenizer = load_tokenizer(folder or locate(options.model or HUB_NAME, weights=False).folder)
    except BaseError as error:
        raise BaseError(
            "GPT-2's tokenizer is not with the model and the hub can't be reached: give the folder with its "
            f"vocab.json and merges.txt with {setting('call.tokenizer', 'PATH')}."
        ) from error
    return lambda texts: tokenizer(list(texts), verbose=False)["input_ids"], tokenizer.decode


def _from_files(folder: Path) -> tuple[Encode, Callable[[Sequence[int]], str]]:
    from tokenizers import ByteLevelBPETokenizer

    files = [folder / "vocab.json", folder / "merges.txt"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BaseError(
            f"{folder} has no {' and no '.join(missing)}. Give the folder of GPT-2's tokenizer with "
            f"{setting('call.tokenizer')}."
        )
    bpe = ByteLevelBPETokenizer.from_file(*map(str, files))
    return lambda texts: [found.ids for found in bpe.encode_batch(list(texts))], bpe.decode
