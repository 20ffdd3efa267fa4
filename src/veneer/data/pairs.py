"""Two columns that are read together: which ones they are, by the names that such tables have.

It knows names and what columns may be text; how two texts become tokens is a task's.
"""

from __future__ import annotations

from collections.abc import Sequence

from veneer.data.choices import Choice
from veneer.data.infer import column_facts
from veneer.data.tables import Table
from veneer.naming import setting

__all__ = ["PAIR_NAMES", "find_pair"]

PAIR_NAMES = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"), ("question1", "question2"),
    ("question_1", "question_2"), ("question", "answer"), ("question", "sentence"), ("question", "passage"),
    ("query", "passage"), ("query", "document"), ("claim", "evidence"), ("anchor", "positive"),
)  # fmt: skip


def find_pair(table: Table, taken: Sequence[str | None] = ()) -> tuple[str, str, Choice] | None:
    """The two columns of a pair by their names, in their order; None where the table has no such names.

    `taken` are columns with another use. Both have to hold text.
    """
    known = {name.strip().lower(): name for name in table.columns if name not in taken}
    for first, second in PAIR_NAMES:
        if first not in known or second not in known:
            continue
        names = known[first], known[second]
        if all(column_facts(table, name).may_be_text for name in names):
            reason = f"their names; to read one of them alone, name it with {setting('data.text_column')}"
            return *names, Choice("text columns", " and ".join(names), reason)
    return None
