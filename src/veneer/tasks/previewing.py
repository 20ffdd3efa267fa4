"""What a base will read of a source: the data room's preview with the base's own tokenizer, and no weights.

It joins the two rooms; it prints nothing.
"""

from __future__ import annotations

from veneer.data.config import DataConfig
from veneer.data.download import Progress
from veneer.data.prepare import prepare
from veneer.data.preview import Preview, preview
from veneer.models.skeleton import skeleton
from veneer.tasks.encoding import encode_texts, token_shower

__all__ = ["preview_source"]


def preview_source(
    config: DataConfig,
    base: str,
    *,
    max_length: int | None = None,
    examples: int = 5,
    progress: Progress | None = None,
) -> Preview:
    """Read, split and tokenise as training would.

    Args:
        config: the data.
        base: hub name or folder; only its configuration and tokenizer are read.
        max_length: tokens that a text is cut to; None: what the base reads.
        examples: how many texts to show.
        progress: told of downloads.

    Raises:
        DataError, SourceError: data that can't be used.
        BaseError: a base whose configuration or tokenizer can't be had.
    """
    prepared = prepare(config, progress=progress)
    found = skeleton(base, labels=len(prepared.labels))
    limit = found.max_length if max_length is None else min(max_length, found.max_length)
    tokenizer = found.tokenizer
    return preview(
        prepared,
        lambda texts: encode_texts(tokenizer, texts),
        token_shower(tokenizer, limit),
        max_length=limit,
        n=examples,
    )
