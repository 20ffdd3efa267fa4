"""What the model read, as a part of the report: the picture that `veneer preview` shows, lengths and tokens.

This file knows a run and blocks of the report; how an example is read is its task's.
"""

from __future__ import annotations

from collections.abc import Sequence

from veneer.data.preview import Preview, PreviewText, ShownToken, copies, preview
from veneer.evaluation.blocks import Block, Cell, Paragraph, Section, Spans, Table
from veneer.tasks.previewing import read_as
from veneer.training.prepare import Run

__all__ = ["reading_section"]

_EXAMPLES = 3
_MOST_TOKENS = 160  # of an example that are shown


def reading_section(run: Run) -> Section | None:
    """A few training examples as the model reads them; None where there is none."""
    adapted = run.adapted
    tokenizer, limit = adapted.base.tokenizer, adapted.max_length
    seen = preview(
        run.prepared,
        lambda rows: adapted.task.full_lengths(rows, tokenizer),
        lambda rows, place: adapted.task.shown(rows, place, tokenizer, limit),
        max_length=limit,
        n=_EXAMPLES,
        most=max(map(len, run.prepared.splits)),
        known={
            name: store.full_lengths for name, store in run.stores.items() if store.full_lengths is not None
        },
    )
    seen = read_as(seen, adapted.task, run.stores, adapted.kind.cut_says(adapted.task))
    texts = [
        *seen.examples,
        *(one for one in (seen.longest,) if one is not None and one not in seen.examples),
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
    blocks: list[Block] = [_histogram(seen), *(Paragraph(one, "note") for one in _lengths(seen))]
    blocks.append(Paragraph(said, "note"))
    for text in texts:
        blocks += _example(
            text, "the longest: " if text is seen.longest and text not in seen.examples else ""
        )
    return Section("What the model reads", tuple(blocks), place="end")


def _histogram(seen: Preview) -> Table:
    """How many training texts there are of each length."""
    bins = seen.bins()
    most = max((n for *_, n in bins), default=1)
    rows = tuple((f"{low:,} to {high:,}", f"{n:,}", Cell("", bar=n / most)) for low, high, n in bins)
    return Table(("tokens", "training texts", ""), rows, numeric=(0, 1))


def _lengths(seen: Preview) -> tuple[str, ...]:
    """What the preview says of lengths, cuts and the loss, each as a sentence."""
    return tuple(one[:1].upper() + one[1:] + "." for one in seen.says())


def _example(text: PreviewText, role: str) -> list[Block]:
    title = role + (", ".join(text.labels) or f"example {text.place + 1}")
    pieces = [piece for begins, tokens in copies(text.tokens) for piece in _pieces(begins, tokens)]
    return [Paragraph(f"{title}: {text.length:,} tokens", "note"), Spans(tuple(pieces))]


def _pieces(begins: str, tokens: Sequence[ShownToken]) -> list[tuple[str, str]]:
    """The tokens of one copy as coloured pieces."""
    pieces: list[tuple[str, str]] = [(f" {begins}: ", "special")] if begins else []
    done = 0
    for start, stop in _windows(tokens):
        if start > done:
            pieces.append((f" ... {start - done:,} more ... ", "special"))
        for place in range(start, stop):
            token, before = tokens[place], tokens[max(place - 1, start)]
            if place > start and not token.special and not before.special and not token.text[:1].isspace():
                pieces.append(("·", "special"))
            pieces.append((token.text, _kind(token)))
            if token.tag:
                pieces.append((f" {token.tag}", "special"))
        done = stop
    if done < len(tokens):
        pieces.append((f" ... and {len(tokens) - done:,} more", "special"))
    return pieces


def _windows(tokens: Sequence[ShownToken]) -> list[tuple[int, int]]:
    """Which tokens of an example are shown: the first ones; less of them, where what the loss reads comes later."""
    first = next((place for place, token in enumerate(tokens) if token.target), 0)
    if len(tokens) <= _MOST_TOKENS or first < _MOST_TOKENS - 20:
        return [(0, min(len(tokens), _MOST_TOKENS))]
    half = _MOST_TOKENS // 2
    return [(0, half), (max(half, first - 20), min(len(tokens), first - 20 + half))]


def _kind(token: ShownToken) -> str:
    if not token.read:
        return "cut"
    if token.target:
        return "read"
    return "special" if token.special else ""
