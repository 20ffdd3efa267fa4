"""Load a base: weights, tokenizer, what it reads at most, how it pools, and the hashes that say which one it is.

Models come from transformers. Nothing is random but a new head, and that follows the seed; a checkpoint that does not
fill the body of the model is an error.

This file knows transformers' classes; it knows no data and no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from veneer.errors import BaseError
from veneer.models.hashing import content_hash, weight_files
from veneer.models.heads import Pooling, check_head, head_modules, native_pooling, pooler_modules
from veneer.models.locate import DEFAULT_BASE, Location, locate

__all__ = [
    "Base",
    "cast_frozen_",
    "first_line",
    "load_base",
    "load_tokenizer",
    "max_length_of",
    "quiet",
    "trained_pooling",
]

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "tekken.json", "*.tiktoken")


@dataclass(frozen=True)
class Base:
    """A base model, ready to be adapted.

    Attributes:
        model: the model of transformers, in float32, in eval mode (so no dropout in the frozen layers).
        tokenizer: its tokenizer.
        name: hub name or path; goes into adapter_config.json.
        folder: where the files lie.
        content_hash: "sha256:..." of the weights as they lie on disk.
        tokenizer_hash: "sha256:..." of what the tokenizer does.
        max_length: tokens that a text can have at most, special tokens included.
        pooling: how the base was trained to pool.
        head: names of the modules that are trained whole (empty without a head).
        new_parameters: names of the parameters that the checkpoint did not have.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    folder: Path
    content_hash: str
    tokenizer_hash: str
    max_length: int
    pooling: Pooling
    head: tuple[str, ...]
    new_parameters: frozenset[str]

    @property
    def family(self) -> str:
        """transformers' `model_type`: "bert", "gpt2", ..."""
        config: Any = self.model.config
        return str(config.model_type)

    @property
    def causal(self) -> bool:
        """True for decoders: a token sees only what stands before it."""
        return native_pooling(self.model) == "last"

    @property
    def float32_modules(self) -> tuple[str, ...]:
        """Names of modules that read pooled states, so that they stay in float32 whatever the body computes in."""
        return (*self.head, *pooler_modules(self.model))

    def with_pooling(self, pooling: Pooling) -> Base:
        """The same base, read by another pooling, with the head that this needs."""
        return replace(self, pooling=pooling, head=head_modules(self.model, pooling, self.new_parameters))


def load_base(
    name: str = DEFAULT_BASE,
    *,
    labels: Sequence[str],
    multi_label: bool = False,
    seed: int = 0,
    revision: str | None = None,
) -> Base:
    """Load a base with a classification head for these labels.

    Args:
        name: folder or hub name.
        labels: K label names; the head gets K outputs.
        multi_label: several labels per text (transformers' `problem_type`).
        seed: of the new head's weights.
        revision: branch, tag or commit on the hub.

    Raises:
        BaseError: not found, damaged, not a text model, or its checkpoint does not fill it.
    """
    from transformers import AutoModelForSequenceClassification

    location = locate(name, revision=revision)
    options = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    weight_files(location.folder)  # says what is missing, and how to mend it
    model, new = _from_pretrained(AutoModelForSequenceClassification, location, options, seed)
    tokenizer = load_tokenizer(location.folder)
    if model.config.pad_token_id is None:  # decoders: transformers' classes need one to find the last token
        model.config.pad_token_id = _padding_id(tokenizer)
    check_head(model.eval())
    pooling = trained_pooling(location.folder) or native_pooling(model)
    return Base(
        model=model.eval(),
        tokenizer=tokenizer,
        name=location.name,
        folder=location.folder,
        content_hash=content_hash(location.folder),
        tokenizer_hash=tokenizer_hash(tokenizer),
        max_length=max_length_of(model, tokenizer, location.folder),
        pooling=pooling,
        head=head_modules(model, pooling, new),
        new_parameters=new,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises:
        BaseError: there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    # transformers makes an empty tokenizer where there is no file to read one from.
    if not any(found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern)):
        raise BaseError(
            f"{folder} holds no tokenizer: expected tokenizer.json or its like. Save the model's own there: "
            "tokenizer.save_pretrained(folder)."
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BaseError(f"{folder} has no tokenizer that can be read ({first_line(error)}).") from error


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of what the tokenizer does: its whole definition, without the padding and cutting of a single call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        definition.pop("truncation", None)
        definition.pop("padding", None)
    else:
        definition = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    text = json.dumps(definition, sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def cast_frozen_(model: nn.Module, dtype: torch.dtype, *, keep: Sequence[str] = ()) -> None:
    """Cast the frozen weights of `model` to `dtype` in place; trainable ones and modules named in `keep` stay fp32.

    Buffers stay as they are: rotary frequencies lose their meaning in bf16.
    """
    prefixes = tuple(f"{name}." for name in keep)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name.startswith(prefixes) or not parameter.is_floating_point():
            continue
        parameter.data = parameter.data.to(dtype)


def _from_pretrained(
    auto: Any, location: Location, options: dict[str, Any], seed: int
) -> tuple[Any, frozenset[str]]:
    """The model in fp32 and the names of the parameters that its checkpoint did not have."""
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, info = auto.from_pretrained(
                location.folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except SafetensorError as error:
        raise BaseError(
            f"{location.name}: its weights are not a whole safetensors file ({first_line(error)}). Download them again."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"{location.name} can't be loaded: {first_line(error)}") from error
    new = frozenset(info["missing_keys"]) | frozenset(key for key, *_ in info["mismatched_keys"])
    prefix = model.base_model_prefix + "."
    body = sorted(name for name in new if name.startswith(prefix) and ".pooler." not in name)
    if body:
        raise BaseError(
            f"{location.name}: its weights do not fill the model; {len(body)} parameters are missing or have "
            f"another shape, such as {', '.join(body[:3])}. The folder is damaged or config.json is another model's."
        )
    return model, new


def _padding_id(tokenizer: Any) -> int:
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return 0


def trained_pooling(folder: Path) -> Pooling | None:
    """The pooling that sentence-transformers wrote beside the model, or None."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    named: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
        "pooling_mode_lasttoken": "last",
    }
    for key, pooling in named.items():
        if config.get(key):
            return pooling
    return None


def max_length_of(model: Any, tokenizer: Any, folder: Path) -> int:
    """Tokens that a text can have at most: what positions, tokenizer and sentence-transformers' file allow."""
    limits = []
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions:
        embeddings: Any = getattr(model.base_model, "embeddings", None)
        offset = (
            embeddings.padding_idx + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0
        )
        limits.append(int(positions) - offset)
    if tokenizer.model_max_length and tokenizer.model_max_length < 1_000_000:
        limits.append(int(tokenizer.model_max_length))
    sentence = folder / "sentence_bert_config.json"
    if sentence.is_file():
        limit = json.loads(sentence.read_text(encoding="utf-8")).get("max_seq_length")
        if limit:
            limits.append(int(limit))
    return min(limits) if limits else 1024


def first_line(error: BaseException) -> str:
    """The first line of another library's message, cut short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own messages and bars: what matters in them is checked here and said in our words."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
