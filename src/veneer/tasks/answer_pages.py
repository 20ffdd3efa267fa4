"""What is written about an adapter that answers questions: its model card, and its parts of the report.

This file knows answers and words for people; it measures nothing.

Shapes: N questions, M windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from veneer.data.choices import Choice, counted
from veneer.evaluation.answer_baseline import sentence_baseline
from veneer.evaluation.answers import question_scores
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Block, Folded, Paragraph, Section, Table
from veneer.naming import setting
from veneer.tasks.asked import Asked, asked_of
from veneer.tasks.kind import Card, Findings, Told

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted
    from veneer.tasks.base import Encoded, Outputs

__all__ = ["answer_baselines", "answer_card", "answer_findings", "windows_told"]

_MISSES = 20
_AROUND = 70  # characters of the context on either side of the right answer
_CODE = """import torch
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base!r})
base = AutoModelForQuestionAnswering.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
question, context = "the question", "the text that holds the answer"
batch = tokenizer(question, context, truncation="only_second", max_length={max_length}, return_tensors="pt",
                  return_offsets_mapping=True)  # of a longer context this reads the beginning; Veneer reads windows
offsets = batch.pop("offset_mapping")[0].tolist()
with torch.no_grad():
    found = model.base_model(**batch)  # PEFT's own forward drops the token types
inside = torch.tensor([owner == 1 for owner in batch.sequence_ids(0)])
first = found.start_logits[0].masked_fill(~inside, -torch.inf)
last = found.end_logits[0].masked_fill(~inside, -torch.inf)
scores = (first[:, None] + last[None, :]).triu().tril({longest})  # tokens first <= last, of {max_answer_length} at most
scores = scores.masked_fill(torch.ones_like(scores).triu().tril({longest}) == 0, -torch.inf)
start, end = divmod(int(scores.argmax()), scores.shape[1])
print(context[offsets[start][0] : offsets[end][1]].strip())
"""


def answer_card(adapted: Adapted) -> Card:
    """What the model card says."""
    task: Any = adapted.task
    code = _CODE.format(
        base=adapted.base.name,
        max_length=adapted.max_length,
        longest=task.max_answer_length - 1,
        max_answer_length=task.max_answer_length,
    )
    none = (
        ' It may say that the context holds no answer: where "no answer" scores more than '
        f"{task.none_threshold:g} above the best span (the first token's start + end logit)."
    )
    limits = [
        "It gives words of the context as they stand there; it can't count, compare or put an answer into words.",
        "The text may be wrong, or not about the question: the answer is only what the text says.",
    ]
    if not task.may_be_none:
        limits.append("It always gives an answer, also where the context holds none.")
    return Card(
        summary="the words of a context that answer a question" + ("." + none if task.may_be_none else ""),
        pipeline_tag="question-answering",
        code=code,
        limits=tuple(limits),
        commands=(
            'veneer predict ADAPTER --question "Who wrote it?" --context text.txt',
            "veneer evaluate ADAPTER more.json",
        ),
    )


def answer_findings(told: Told) -> Findings:
    """The misses that are worth reading, and how the contexts were read."""
    task: Any = told.adapted.task
    asked = asked_of(told.encoded)
    assert asked.gold is not None
    given = task.given(told.outputs, told.encoded)
    scores = question_scores(given, asked.gold)
    wrong = np.flatnonzero(scores[:, 0] < 1.0)
    worst = wrong[np.argsort(scores[wrong, 1], kind="stable")]
    sections = (_misses(asked, given, scores, worst), _windows(asked, told))
    return Findings(mistakes_total=len(wrong), sections=tuple(part for part in sections if part is not None))


def _misses(asked: Asked, given: list[str], scores: Any, worst: Any) -> Section | None:
    if not len(worst):
        return None
    assert asked.gold is not None
    rows = []
    for place in worst[:_MISSES].tolist():
        gold = asked.gold[place]
        rows.append(
            (
                asked.questions[place],
                " / ".join(dict.fromkeys(gold)) or "(no answer)",
                given[place] or "(no answer)",
                f"{100 * scores[place, 1]:.0f}",
                _around(asked.contexts[place], gold),
            )
        )
    table = Table(
        ("question", "right", "given", "F1", "where"), tuple(rows), numeric=(3,), texts=(0, 1, 2, 4)
    )
    said = f"{counted(len(worst), 'question')} of {len(given):,} without an exact match; the worst first."
    blocks: tuple[Block, ...] = (Paragraph(said, "note"), table)
    return Section("Answers that miss", blocks if len(rows) <= 8 else _folded(blocks[0], table))


def _folded(said: Block, table: Table) -> tuple[Block, ...]:
    few = Table(table.columns, table.rows[:6], table.numeric, table.texts)
    rest = Table(table.columns, table.rows[6:], table.numeric, table.texts)
    return said, few, Folded(f"{len(rest.rows)} more", (rest,))


def _around(context: str, gold: tuple[str, ...]) -> str:
    """The context about the first gold answer, on one line."""
    at = context.find(gold[0]) if gold else 0
    end = at + (len(gold[0]) if gold else 0)
    low, high = max(0, at - _AROUND), min(len(context), end + _AROUND)
    piece = " ".join(context[low:high].split())
    return f"{'…' if low else ''}{piece}{'…' if high < len(context) else ''}"


def _windows(asked: Asked, told: Told) -> Section | None:
    placed = asked.placed
    if placed is None:
        return None
    several = int((np.bincount(asked.windows.example) > 1).sum())
    rows = [
        ("questions", f"{asked.windows.examples:,}"),
        ("windows", f"{len(asked.windows):,}"),
        ("questions read in several windows", f"{several:,}"),
        ("windows that hold a whole answer", f"{placed.with_answer:,}"),
        ("answers that no window holds whole", f"{int(placed.lost.sum()):,}"),
        ("answers that begin or end inside a token", f"{placed.widened:,}"),
    ]
    task: Any = told.adapted.task
    note = (
        f"Of the split that decides. A window has {told.adapted.max_length} tokens at most; neighbours share "
        f"{task.doc_stride}, or half of a window where that is less."
    )
    table = Table(("", ""), tuple(rows), numeric=(1,))
    return Section("How the contexts were read", (table, Paragraph(note, "note")), place="end")


def answer_baselines(
    adapted: Adapted,
    train: Encoded,  # noqa: ARG001
    held_out: Encoded,
    outputs: Outputs,
    seed: int,
) -> tuple[Baseline, ...]:
    """What the closest sentence reaches on the held-out questions."""
    asked, task = asked_of(held_out), adapted.task
    assert asked.gold is not None
    ours: list[str] = task.given(outputs, held_out)  # type: ignore[attr-defined]
    found = sentence_baseline(
        asked.questions, asked.contexts, asked.gold, ours, groups=asked.groups, seed=seed
    )
    return (found,)


def windows_told(
    encoded: Encoded, name: str, max_length: int, doc_stride: int
) -> tuple[tuple[Choice, ...], tuple[str, ...]]:
    """What is said of the windows of a split when they are made: a choice, and a warning for answers that are lost."""
    asked = asked_of(encoded)
    windows, placed = asked.windows, asked.placed
    assert placed is not None
    reason = f"at most {max_length} tokens each, neighbours share {doc_stride}, at most half"
    if len(windows) == windows.examples:
        reason = f"each question's context fits into {max_length} tokens"
    value = (
        f"{len(windows):,} of {counted(windows.examples, 'question')}, {placed.with_answer:,} hold the answer"
    )
    lost = int(placed.lost.sum())
    if not lost:
        return (Choice("windows", value, reason),), ()
    verb = "stands" if lost == 1 else "stand"
    warning = (
        f"{counted(lost, 'answer')} of {name} {verb} whole in no window; the model is taught that these windows hold "
        f"no answer. Windows that share more ({setting('options.doc_stride', 'N')}) or are longer "
        f"({setting('max_length')}) hold longer answers."
    )
    return (Choice("windows", value, reason),), (warning,)
