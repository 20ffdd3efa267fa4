"""What a list of the training words reaches: each word with the tag that it mostly had there, all others outside.

The baseline of entities (that of CoNLL-2003's shared task is its kin). This module knows words and numbers of tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["WordTags"]


@dataclass(frozen=True)
class WordTags:
    """Word -> the number of its commonest tag; words that were mostly outside are left out."""

    tags: dict[str, int]

    @classmethod
    def fit(cls, rows: Iterable[tuple[Sequence[str], Sequence[int]]], outside: int = 0) -> WordTags:
        """From training rows: the words of a row and the numbers of their tags; in a tie the smallest number."""
        seen: dict[str, Counter[int]] = {}
        for words, tags in rows:
            for word, tag in zip(words, tags, strict=True):
                seen.setdefault(word, Counter())[int(tag)] += 1
        best = {word: min((-times, tag) for tag, times in counts.items())[1] for word, counts in seen.items()}
        return cls({word: tag for word, tag in best.items() if tag != outside})

    def predict(self, words: Sequence[str], outside: int = 0) -> list[int]:
        """The number of a tag for each word."""
        return [self.tags.get(word, outside) for word in words]
