"""A base without its weights: its layers and sizes, its tokenizer and limits, in a second and without a download.

    found = skeleton("openai-community/gpt2", labels=2)

For questions that are asked before training: what would be adapted, how many tokens a text has. The layers lie on
torch's meta device, where a tensor has a shape and no values. This file knows transformers' classes and no adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from veneer.errors import BaseError
from veneer.models.forms import (
    SEQUENCE,
    HeadSpec,
    auto_class,
    body_head,
    check_form,
    is_decoder,
    sequence_head,
)
from veneer.models.heads import Pooling, head_modules, native_pooling, unread_modules
from veneer.models.load import (
    config_of,
    first_line,
    load_tokenizer,
    max_length_of,
    quiet,
    trained_pooling,
)
from veneer.models.locate import DEFAULT_BASE, locate

__all__ = ["Skeleton", "skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """What a base is, without weights.

    Attributes:
        model: transformers' model with a head, on the meta device.
        name: hub name or path.
        folder: where its small files lie.
        pooling: how it was trained to pool; only a head of the form "sequence" asks for it.
        head: names of the modules that would be trained whole.
        spec: which head it carries.
    """

    model: nn.Module
    name: str
    folder: Path
    pooling: Pooling
    head: tuple[str, ...]
    spec: HeadSpec = SEQUENCE

    @property
    def family(self) -> str:
        """transformers' `model_type`."""
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

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, loaded when it is first asked for."""
        return load_tokenizer(self.folder)

    @property
    def max_length(self) -> int:
        """Tokens that a text can have at most, special tokens included."""
        return max_length_of(self.model, self.tokenizer, self.folder)

    def with_pooling(self, pooling: Pooling) -> Skeleton:
        """The same base, read by another pooling, with the head that this needs."""
        return replace(self, pooling=pooling, head=head_modules(self.model, pooling))


def skeleton(
    name: str = DEFAULT_BASE, *, labels: int = 2, head: HeadSpec | None = None, revision: str | None = None
) -> Skeleton:
    """The layers of a base with a head, without loading a weight.

    Args:
        name: folder or hub name.
        labels: outputs of a classification head.
        head: any other head.
        revision: branch, tag or commit on the hub.

    Raises:
        BaseError: its configuration can't be had, is not that of a text model, or can't carry this head.
    """
    from transformers import AutoConfig

    spec = head or sequence_head([f"LABEL_{i}" for i in range(labels)])
    location = locate(name, revision=revision, weights=False)
    check_form(config_of(location), spec.form, location.name)
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(location.folder, **spec.options)
            model = auto_class(spec.form).from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"{location.name} can't be read: {first_line(error)}") from error
    if spec.form == "sequence":
        pooling = trained_pooling(location.folder) or native_pooling(model)
        return Skeleton(model, location.name, location.folder, pooling, head_modules(model, pooling), spec)
    trained = () if spec.form == "causal" else body_head(model)
    pooling = "last" if is_decoder(config) else "first"
    return Skeleton(model, location.name, location.folder, pooling, trained, spec)
