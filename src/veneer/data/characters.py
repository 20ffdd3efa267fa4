"""Ends of spans that don't cut through what a person sees as one character.

A letter and its combining marks, or an emoji with its skin tone and what a zero-width joiner ties to it, are several
characters of Unicode. A tokenizer may split them or drop some of them; a span for people keeps them together. The rules
are the part of extended grapheme clusters (Unicode Standard Annex 29, GB9, GB9a, GB11, GB12) that matter for words
and emoji, without its tables.
"""

from __future__ import annotations

import unicodedata

__all__ = ["whole_characters"]

_JOINER = "\u200d"


def whole_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """The smallest span around text[start:end] that begins and ends between two visible characters.

    >>> whole_characters("e\\u0301t", 0, 1), whole_characters("e\\u0301t", 1, 3)
    ((0, 2), (0, 3))
    """
    while 0 < start < len(text) and _tied(text, start):
        start -= 1
    while 0 < end < len(text) and _tied(text, end):
        end += 1
    return start, end


def _tied(text: str, place: int) -> bool:
    """Whether the character at `place` belongs to the one before it."""
    here, before = text[place], text[place - 1]
    if here == _JOINER or unicodedata.category(here) in ("Mn", "Me", "Mc") or _skin_tone(here):
        return not before.isspace()
    if before == _JOINER:
        return unicodedata.category(here) == "So"
    if _flag_letter(here) and _flag_letter(before):
        run = 0
        while run < place and _flag_letter(text[place - 1 - run]):
            run += 1
        return run % 2 == 1  # flags are pairs
    return False


def _skin_tone(character: str) -> bool:
    return "\U0001f3fb" <= character <= "\U0001f3ff"


def _flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
