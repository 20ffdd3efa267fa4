"""What the model read, token by token, as a part of the report: the picture that `veneer preview` shows.

This file knows a run and blocks of the report; how an example is read is its task's.
"""

from __future__ import annotations

from veneer.data.preview import PreviewText, ShownToken, varied
from veneer.evaluation.blocks import Block, Paragraph, Section, Spans
from veneer.training.prepare import Run

__all__ = ["reading_section"]

_EXAMPLES = 3
_MOST_TOKENS = 160  # of an example that are shown


def reading_section(run: Run) -> Section | None:
    """A few training examples as the model reads them; None where there is none."""
    train, adapted = run.prepared.train, run.adapted
    texts = [
        adapted.task.shown(train, place, adapted.base.tokenizer, adapted.max_length)
        for place in varied(train, _EXAMPLES)
    ]
    if not texts:
        return None
    marked = any(token.target for text in texts for token in text.tokens)
    said = "Training examples as the model reads them: a dot between tokens, special tokens small"
    said += (
        ", what the loss reads marked, what is cut off struck out."
        if marked
        else ", what is cut off struck out."
    )
    blocks: list[Block] = [Paragraph(said, "note")]
    for text in texts:
        blocks += _example(text)
    return Section("What the model reads", tuple(blocks), place="end")


def _example(text: PreviewText) -> list[Block]:
    title = ", ".join(text.labels) or f"example {text.place + 1}"
    tokens = text.tokens[:_MOST_TOKENS]
    pieces: list[tuple[str, str]] = []
    for place, token in enumerate(tokens):
        if place and not token.special and not tokens[place - 1].special and not token.text[:1].isspace():
            pieces.append(("·", "special"))
        pieces.append((token.text, _kind(token)))
        if token.tag:
            pieces.append((f" {token.tag}", "special"))
    more = len(text.tokens) - len(tokens)
    if more:
        pieces.append((f" ... and {more:,} more", "special"))
    return [Paragraph(f"{title}: {text.length:,} tokens", "note"), Spans(tuple(pieces))]


def _kind(token: ShownToken) -> str:
    if not token.read:
        return "cut"
    if token.target:
        return "read"
    return "special" if token.special else ""
