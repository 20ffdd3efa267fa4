"""Tags of words and the entities that they mark: BIO, BIOES (BILOU, BMES), IOB1 and plain tags.

Whatever the scheme, a row's tags are read as entities once, and written as BIO for the model. Sequences that break
their scheme (I- where nothing began) are read as seqeval does in its default mode, which is that of conlleval.pl:
an entity begins there; they are counted. This module knows lists of tags, and neither texts nor files.

Entities are (first word, word after the last, type).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from veneer.data.choices import Choice
from veneer.errors import DataError, nearest

__all__ = [
    "OUTSIDE", "Entity", "Scheme", "TagScan", "bio_labels", "bio_tags", "broken", "entities_of", "is_prefixed",
    "recognise", "scan_tags",
]  # fmt: skip

Entity = tuple[int, int, str]
Scheme = Literal["BIO", "BIOES", "BILOU", "BMES", "IOB1", "plain"]

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLUM])[-_](.+)", re.DOTALL)
_ENDED = re.compile(r"(.+)[-_]([BIESLUM])")
_SEQEVAL = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


@dataclass(frozen=True)
class TagScan:
    """What was seen in the tags of many rows.

    counts    tag -> words
    orphans   words that go on with an entity (I-) where none of their type is open
    begun     words with B- where no entity of their type was open just before
    """

    counts: Counter[str]
    orphans: int
    begun: int


def scan_tags(rows: Iterable[Sequence[str]]) -> TagScan:
    """Go through the tags once."""
    counts: Counter[str] = Counter()
    orphans = begun = 0
    for tags in rows:
        counts.update(tags)
        before: tuple[str, str] | None = None
        for tag in tags:
            part = _parts(tag)
            is_open = before is not None and part is not None and before[1] == part[1] and before[0] in "BI"
            if part is not None:
                orphans += part[0] in "IE" and not is_open
                begun += part[0] == "B" and not is_open
            before = part
    return TagScan(counts, orphans, begun)


def recognise(scan: TagScan, where: str) -> tuple[Scheme, Choice]:
    """Which scheme the tags follow, and why.

    Raises:
        DataError: tags with and without a prefix, prefixes at the end, or nothing but "O".
    """
    tags = [tag for tag in scan.counts if tag != OUTSIDE]
    if not tags:
        raise DataError(
            f"{where} holds no entity: every word is tagged O. At least one type is needed to learn."
        )
    matches = {tag: _TAG.fullmatch(tag) for tag in tags}
    plain = sorted(tag for tag, match in matches.items() if match is None)
    prefixes = {match[1] for match in matches.values() if match is not None}
    if plain and prefixes:
        near = nearest(plain[0], [tag for tag in tags if tag not in plain])
        raise DataError(
            f"{where}: some tags have a prefix such as B- and some have none: {', '.join(map(repr, plain[:5]))}. "
            f"{near + ' ' if near else ''}Write all of them one way: O, B-type, I-type; or O and the type alone."
        )
    if plain:
        if all(_ENDED.fullmatch(tag) for tag in tags):
            raise DataError(
                f"{where}: the tags end in their prefix ({', '.join(map(repr, plain[:3]))}); expected B-type."
            )
        reason = (
            f"none of the {len(tags)} tags has a prefix such as B-; neighbours of one type are one entity"
        )
        return "plain", Choice("tags", "plain", reason)
    scheme, reason = _prefixed(prefixes, scan)
    return scheme, Choice("tags", scheme, reason)


def _prefixed(prefixes: set[str], scan: TagScan) -> tuple[Scheme, str]:
    if prefixes & {"L", "U"}:
        return "BILOU", "L- or U- ends an entity"
    if "M" in prefixes:
        return "BMES", "M- stands inside of an entity"
    if prefixes & {"E", "S"}:
        return "BIOES", "E- ends an entity, S- is one of a single word"
    if scan.orphans and not scan.begun:
        return "IOB1", "I- begins an entity, B- only stands where one follows another of its type"
    return "BIO", "B- begins an entity, I- goes on with it"


def broken(scan: TagScan, scheme: Scheme) -> int:
    """How many entities begin with a tag that should go on with one."""
    return 0 if scheme in ("IOB1", "plain") else scan.orphans


def entities_of(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
    """The entities that tags mark, in order, as seqeval's default mode reads them.

    >>> entities_of(["O", "B-per", "I-per", "I-loc"], "BIO")
    [(1, 3, 'per'), (3, 4, 'loc')]
    """
    found: list[Entity] = []
    start, before, type_before = 0, "O", ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        if tag == OUTSIDE:
            mark, kind = "O", ""
        elif scheme == "plain":
            mark, kind = "I", tag
        else:
            parts = _parts(tag)
            mark, kind = parts if parts is not None else ("I", tag)
        goes_on = mark in "IE" and before in "BI" and kind == type_before
        if before != "O" and not goes_on:
            found.append((start, place, type_before))
        if mark != "O" and not goes_on:
            start = place
        before, type_before = mark, kind
    return found


def bio_tags(n: int, entities: Iterable[Entity]) -> list[str]:
    """The tags of n words.

    >>> bio_tags(3, [(1, 3, "per")])
    ['O', 'B-per', 'I-per']
    """
    tags = [OUTSIDE] * n
    for first, stop, kind in entities:
        tags[first] = f"B-{kind}"
        tags[first + 1 : stop] = [f"I-{kind}"] * (stop - first - 1)
    return tags


def bio_labels(types: Iterable[str]) -> tuple[str, ...]:
    """The labels of the head for these types: "O" first, then B- and I- of each, by name."""
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in sorted(set(types)) for mark in "BI"))


def is_prefixed(tag: str) -> bool:
    """Whether a tag has a prefix such as B-."""
    return _parts(tag) is not None


def _parts(tag: str) -> tuple[str, str] | None:
    """seqeval's letter and the type of a tag with a prefix, else None."""
    match = _TAG.fullmatch(tag)
    return None if match is None else (_SEQEVAL[match[1]], match[2])
