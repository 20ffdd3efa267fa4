"""Where the words of a text are: of tokens that were given, and of running text.

Entities are marked on words. A data set that comes as tokens says itself what a word is; running text is cut by one of
two rules that need no tokenizer, so that a row has the same words whatever base reads it:

    "fine"     letters and digits together, every other sign alone        New York-based -> New | York | - | based
    "edges"    what blanks separate, with the signs at its ends peeled    (New York-based) -> ( | New | York-based | )

"fine" is for data that marks spans of characters, "edges" comes near to what data sets of tokens have. Neither cuts
between a sign and what combines with it (accents, joined emoji). This module knows no label and no tokenizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

__all__ = ["WordRule", "join_words", "words_of"]

WordRule = Literal["fine", "edges"]
Places = tuple[tuple[int, int], ...]
"""The characters of each word, start and end, ascending, never overlapping."""

_JOINER = "\u200d"
_HELD = "@#"  # at a word's beginning they belong to it: names and topics of short messages
_ALONE = (  # ideographs and kana are written without blanks: each is a word, as BERT's tokenizers have it
    (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F),
)  # fmt: skip


def join_words(tokens: Sequence[str]) -> tuple[str, Places]:
    """The text of given tokens, a blank between any two, and where each of them stands in it.

    >>> join_words(["In", "New York", "."])
    ('In New York .', ((0, 2), (3, 11), (12, 13)))
    """
    places, at = [], 0
    for token in tokens:
        places.append((at, at + len(token)))
        at += len(token) + 1
    return " ".join(tokens), tuple(places)


def words_of(text: str, rule: WordRule = "fine") -> Places:
    """The words of running text.

    >>> [text[a:b] for text in ["(It's U.S.-made)"] for a, b in words_of(text, "fine")]
    ['(', 'It', "'", 's', 'U', '.', 'S', '.', '-', 'made', ')']
    >>> [text[a:b] for text in ["(It's U.S.-made)"] for a, b in words_of(text, "edges")]
    ['(', "It's", 'U.S.-made', ')']
    """
    units = _units(text)
    if rule == "fine":
        return tuple(_joined(units))
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(units):
        stop = start
        while stop < len(units) and (stop == start or units[stop][0] == units[stop - 1][1]):
            stop += 1
        found += _peeled(text, units[start:stop])
        start = stop
    return tuple(found)


def _peeled(text: str, units: list[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """A run without blanks: signs at its ends one by one, what lies between them as one word."""
    first, last = 0, len(units)
    while first < last and units[first][2] == "sign" and not _holds(text, units, first):
        first += 1
    while last > first and units[last - 1][2] == "sign":
        last -= 1
    if any(kind == "alone" for _, _, kind in units[first:last]):
        middle = _joined(units[first:last])
    else:
        middle = [(units[first][0], units[last - 1][1])] if first < last else []
    return [*((a, b) for a, b, _ in units[:first]), *middle, *((a, b) for a, b, _ in units[last:])]


def _holds(text: str, units: list[tuple[int, int, str]], place: int) -> bool:
    """Whether the sign begins a name: @paul, #topic."""
    return text[units[place][0]] in _HELD and place + 1 < len(units) and units[place + 1][2] != "sign"


def _joined(units: list[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """Neighbouring letters as one word, all else alone."""
    found: list[tuple[int, int]] = []
    open_word = False
    for start, end, kind in units:
        if kind == "letter" and open_word and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
        open_word = kind == "letter"
    return found


def _units(text: str) -> list[tuple[int, int, str]]:
    """What is never cut, with its kind: "letter" (or digit), "sign", "alone". Blanks are left out."""
    found: list[tuple[int, int, str]] = []
    joins = half_flag = False
    for place, sign in enumerate(text):
        kind = _kind(sign)
        touches = bool(found) and found[-1][1] == place
        flag = 0x1F1E6 <= ord(sign) <= 0x1F1FF  # two regional letters make one flag
        if touches and (kind == "mark" or joins or (flag and half_flag)):
            found[-1] = (found[-1][0], place + 1, found[-1][2])
        elif kind != "blank":
            found.append((place, place + 1, "sign" if kind == "mark" else kind))
        half_flag = flag and not (touches and half_flag)
        joins = sign == _JOINER and touches
    return found


def _kind(sign: str) -> str:
    if sign.isascii():
        if sign.isalnum() or sign == "_":
            return "letter"
        return "blank" if sign <= " " or sign == "\x7f" else "sign"
    category, number = unicodedata.category(sign), ord(sign)
    if sign.isspace() or category == "Cc" or sign in "\u200b\ufeff":
        return "blank"
    if category[0] == "M" or category == "Cf" or 0x1F3FB <= number <= 0x1F3FF:
        return "mark"  # and skin tones, which are marks in effect
    if any(low <= number <= high for low, high in _ALONE):
        return "alone"
    return "letter" if sign.isalnum() else "sign"
