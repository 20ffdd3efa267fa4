"""A base without its weights: its layers and sizes, its tokenizer and limits, in a second and without a download.

    found = skeleton("openai-community/gpt2", labels=2)

For questions that are asked before training: what would be adapted, how many tokens a text has. The layers lie on
torch's meta device, where a tensor has a shape and no values. This file knows transformers' classes and no adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from veneer.errors import BaseError
from veneer.models.heads import Pooling, head_modules, native_pooling
from veneer.models.load import first_line, load_tokenizer, max_length_of, quiet, trained_pooling
from veneer.models.locate import DEFAULT_BASE, locate

__all__ = ["Skeleton", "skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """What a base is, without weights.

    Attributes:
        model: transformers' model with a head, on the meta device.
        name: hub name or path.
        folder: where its small files lie.
        pooling: how it was trained to pool.
        head: names of the modules that would be trained whole.
    """

    model: nn.Module
    name: str
    folder: Path
    pooling: Pooling
    head: tuple[str, ...]

    @property
    def family(self) -> str:
        """transformers' `model_type`."""
        config: Any = self.model.config
        return str(config.model_type)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer, loaded when it is first asked for."""
        return load_tokenizer(self.folder)

    @property
    def max_length(self) -> int:
        """Tokens that a text can have at most, special tokens included."""
        return max_length_of(self.model, self.tokenizer, self.folder)


def skeleton(name: str = DEFAULT_BASE, *, labels: int = 2, revision: str | None = None) -> Skeleton:
    """The layers of a base with a classification head of `labels` outputs, without loading a weight.

    Raises:
        BaseError: its configuration can't be had, or is not that of a text model with a known head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    location = locate(name, revision=revision, weights=False)
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(location.folder, num_labels=labels)
            model = AutoModelForSequenceClassification.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"{location.name} can't be read: {first_line(error)}") from error
    pooling = trained_pooling(location.folder) or native_pooling(model)
    return Skeleton(model, location.name, location.folder, pooling, head_modules(model, pooling))
