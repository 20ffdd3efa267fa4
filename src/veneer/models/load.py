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
from veneer.models.forms import (
    HEAD_CLASSES,
    SEQUENCE,
    HeadSpec,
    auto_class,
    body_head,
    check_form,
    check_token_head,
    is_decoder,
    sequence_head,
)
from veneer.models.hashing import content_hash, weight_files
from veneer.models.heads import (
    Pooling,
    check_head,
    head_modules,
    native_pooling,
    pooler_modules,
    unread_modules,
)
from veneer.models.locate import DEFAULT_BASE, Location, locate
from veneer.naming import setting

__all__ = [
    "Base",
    "cast_frozen_",
    "config_of",
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
        pooling: how the base was trained to pool; only a head of the form "sequence" asks for it.
        head: names of the modules that are trained whole (empty for a language model, whose head is its own).
        new_parameters: names of the parameters that the checkpoint did not have.
        spec: which head it carries.
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
    spec: HeadSpec = SEQUENCE

    @property
    def family(self) -> str:
        """transformers' `model_type`: "bert", "gpt2", ..."""
        config: Any = self.model.config
        return str(config.model_type)

    @property
    def causal(self) -> bool:
        """True for decoders: a token sees only what stands before it."""
        if self.spec.form == "sequence":
            return native_pooling(self.model) == "last"
        return is_decoder(self.model.config)

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of layers that no output depends on."""
        return unread_modules(self.model, self.pooling) if self.spec.form == "sequence" else ()

    @property
    def float32_modules(self) -> tuple[str, ...]:
        """Names of modules that read pooled states, so that they stay in float32 whatever the body computes in."""
        poolers = pooler_modules(self.model) if self.spec.form == "sequence" else ()
        return (*self.head, *poolers)

    def with_pooling(self, pooling: Pooling) -> Base:
        """The same base, read by another pooling, with the head that this needs."""
        return replace(self, pooling=pooling, head=head_modules(self.model, pooling, self.new_parameters))


def load_base(
    name: str = DEFAULT_BASE,
    *,
    labels: Sequence[str] = (),
    multi_label: bool = False,
    head: HeadSpec | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Base:
    """Load a base with a head.

    Args:
        name: folder or hub name.
        labels: K label names, for a classification head with K outputs.
        multi_label: several labels per text (transformers' `problem_type`).
        head: any other head.
        seed: of the new head's weights.
        revision: branch, tag or commit on the hub.

    Raises:
        BaseError: not found, damaged, not a text model, its checkpoint does not fill it, or it can't carry this head.
    """
    spec = head or sequence_head(labels, multi_label=multi_label)
    location = locate(name, revision=revision)
    weight_files(location.folder)  # says what is missing, and how to mend it
    model, new = _from_pretrained(location, spec, seed)
    tokenizer = load_tokenizer(location.folder)
    if model.config.pad_token_id is None:  # decoders: transformers' classes need one to find the last token
        model.config.pad_token_id = _padding_id(tokenizer)
    pooling: Pooling
    if spec.form == "sequence":
        check_head(model.eval())
        pooling = trained_pooling(location.folder) or native_pooling(model)
        trained = head_modules(model, pooling, new)
    else:
        check_token_head(model.eval())
        pooling = "last" if is_decoder(model.config) else "first"
        trained = () if spec.form == "causal" else body_head(model)
    _unmap_(model, trained)
    return Base(
        model=model.eval(),
        tokenizer=tokenizer,
        name=location.name,
        folder=location.folder,
        content_hash=content_hash(location.folder),
        tokenizer_hash=tokenizer_hash(tokenizer),
        max_length=max_length_of(model, tokenizer, location.folder),
        pooling=pooling,
        head=trained,
        new_parameters=new,
        spec=spec,
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

    Buffers stay as they are: rotary frequencies lose their meaning in bf16. What stays fp32 is taken out of the mapped
    file that all weights were loaded from: one small tensor would hold the whole file in memory.
    """
    prefixes = tuple(f"{name}." for name in keep)
    for name, parameter in model.named_parameters():
        if not (parameter.requires_grad or name.startswith(prefixes) or not parameter.is_floating_point()):
            parameter.data = parameter.data.to(dtype)
        elif dtype is not torch.float32:
            parameter.data = parameter.data.clone()


def _unmap_(model: nn.Module, names: Sequence[str]) -> None:
    """Take these modules' weights out of the mapped file: they are kept in fp32, and one tensor keeps it all there."""
    for name in names:
        for parameter in model.get_submodule(name).parameters():
            parameter.data = parameter.data.clone()


def _from_pretrained(location: Location, spec: HeadSpec, seed: int) -> tuple[Any, frozenset[str]]:
    """The model in fp32 and the names of the parameters that its checkpoint did not have."""
    if spec.form != "sequence":
        check_form(config_of(location), spec.form, location.name)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, info = auto_class(spec.form).from_pretrained(
                location.folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **spec.options,
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
    if new and spec.form == "causal":
        raise BaseError(
            f"{location.name} has no output layer of its own ({', '.join(sorted(new)[:3])}), so it was never trained "
            f"to go on with a text. Name a language model with {setting('base')} ({HEAD_CLASSES['causal'].auto} has to "
            "fill it)."
        )
    return model, new


def config_of(location: Location) -> Any:
    """transformers' configuration of a base.

    Raises:
        BaseError: it can't be read.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.from_pretrained(location.folder)
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"{location.name} can't be read: {first_line(error)}") from error


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
