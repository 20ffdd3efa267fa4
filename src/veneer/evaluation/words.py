"""Words and pairs of words as weighted counts: what baselines read of a text.

TF-IDF (Salton and Buckley 1988; sublinear counts as in Manning et al. 2008, section 6.4.1). It knows texts and nothing
of what they are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["word_counts"]

_SPACES_OF_WORDS = 0.04  # share of white space below which a language is read by characters


def word_counts(texts: Sequence[str], characters: bool | None = None) -> tuple[Any, bool]:
    """scikit-learn's vectorizer for these texts, not fitted yet, and whether it reads characters.

    Args:
        texts: that it will be fitted on.
        characters: read runs of 1 to 3 characters instead of words; None infers it: yes for scripts written without
            spaces.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if characters is None:
        characters = _written_without_spaces(texts)
    vectorizer = TfidfVectorizer(
        analyzer="char_wb" if characters else "word",
        ngram_range=(1, 3) if characters else (1, 2),
        token_pattern=None if characters else r"\w+|[^\w\s]",  # one-letter words and signs count as well
        sublinear_tf=True,
        min_df=1 if len(texts) < 500 else 2,  # a word seen once tells nothing and costs most of the time
        max_features=200_000,
        dtype=np.float32,
    )
    return vectorizer, characters


def _written_without_spaces(texts: Sequence[str]) -> bool:
    """True for scripts like Chinese or Thai: long texts with hardly any white space."""
    sample = "".join(texts[:: max(1, len(texts) // 500)])
    letters = sum(not character.isspace() for character in sample)
    spaces = len(sample) - letters
    longest = max((len(text) for text in texts[:500]), default=0)
    return (
        longest > 8
        and spaces < _SPACES_OF_WORDS * max(1, len(sample))
        and any(ord(c) > 0x0E00 for c in sample)
    )
