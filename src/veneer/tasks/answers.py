"""Answers: the words of a context that answer a question, or none (extractive question answering).

The head scores each token as the first and as the last of the answer; a long context is read in overlapping windows,
and the best span over all of them is the answer. The head is transformers' own (`qa_outputs`), so that PEFT and
transformers read what is saved.

Shapes: N questions, M windows, B windows of a batch, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veneer.adapter import AdapterFolder
from veneer.data.preview import PreviewText
from veneer.data.question_columns import ROLES
from veneer.data.questions import Questions
from veneer.data.ragged import Ragged
from veneer.engine.packing import Layout
from veneer.evaluation.answers import AnswerMetrics, answer_metrics, best_threshold, question_scores
from veneer.models import Base
from veneer.models.forms import HeadSpec
from veneer.tasks.answer_pages import answer_baselines, answer_card, answer_findings, windows_told
from veneer.tasks.answer_rows import AnswerOptions, claims, labelled_questions, prepare
from veneer.tasks.asked import INPUTS, asked_of, encode_asked, encode_questions, pieces, shown_question
from veneer.tasks.base import Answer, Decided, Encoded, Input, Outputs, ScoreForm, Targets
from veneer.tasks.best_spans import Candidates, best_spans
from veneer.tasks.kind import Headline, Kind, Making
from veneer.tasks.span_loss import mean_span_loss, packed_span_loss
from veneer.tasks.token_head import TokenHead
from veneer.tasks.windows import full_lengths

__all__ = ["KIND", "AnswerOptions", "Answers"]


@dataclass(frozen=True)
class Answers(TokenHead):
    """The task's own facts.

    Attributes:
        doc_stride, max_answer_length, n_best: see `AnswerOptions`.
        may_be_none: whether "no answer" can be given: the training data held questions without one (SQuAD 2).
        none_threshold: it is given where its score exceeds that of the best span by more than this.
        token_types: question and context are told apart by token types, where the tokenizer has them. Off for folders
            of PEFT, whose question answering class (0.21) drops them in training and use.
    """

    doc_stride: int = 128
    max_answer_length: int = 30
    n_best: int = 20
    may_be_none: bool = False
    none_threshold: float = 0.0
    token_types: bool = True

    name = "answers"
    head = HeadSpec("span")
    inputs = INPUTS
    per: ClassVar[Literal["text", "token"]] = "token"
    deciding = ScoreForm("f1", "F1")
    answer_keys = ("answer", "start", "end", "score")

    def encode(self, rows: Questions, tokenizer: Any, max_length: int) -> Encoded:
        """Windows of the questions; targets are the places of the answer's first and last token."""
        found = encode_questions(rows, tokenizer, max_length, self.doc_stride)
        choices, warnings = windows_told(found, rows.name, max_length, self.doc_stride)
        return self._typed(replace(found, choices=choices, warnings=warnings))

    def encode_inputs(self, inputs: Sequence[Input], tokenizer: Any, max_length: int) -> Encoded:
        """Windows of questions that are asked."""
        return self._typed(encode_asked(inputs, tokenizer, max_length, self.doc_stride))

    def _typed(self, encoded: Encoded) -> Encoded:
        return encoded if self.token_types else replace(encoded, segments=None)

    def inputs_of(self, rows: Questions, places: Sequence[int]) -> list[Input]:
        """Question and context of each."""
        chosen = rows.iterate(np.asarray(places, np.int64))
        return [{"question": one.question, "context": one.context} for one in chosen]

    def full_lengths(self, rows: Questions, tokenizer: Any) -> NDArray[np.int32]:
        """(N,) tokens of question and context in one piece."""
        return full_lengths(pieces((one.question, one.context) for one in rows), tokenizer)

    def shown(self, rows: Questions, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """The window that holds the answer."""
        return shown_question(rows, place, tokenizer, max_length, self.doc_stride)

    def collate(self, targets: Targets) -> Tensor:
        """(B, 2) int64."""
        assert not isinstance(targets, Ragged)
        return torch.from_numpy(np.ascontiguousarray(targets, np.int64))

    def units(self, targets: Targets) -> int:
        """Windows."""
        return len(targets)

    def reads(self, layout: Layout, targets: Tensor | None = None) -> Tensor | None:  # noqa: ARG002
        """Every token."""
        return None

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout) -> Tensor:
        """Mean over the windows of the cross-entropies of start and end, over each window's own tokens."""
        return packed_span_loss(outputs, targets, layout)

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:
        """The same over a split."""
        assert isinstance(outputs, Ragged)
        assert isinstance(encoded.targets, np.ndarray)
        return mean_span_loss(outputs, encoded.targets)

    def candidates(self, outputs: Outputs, encoded: Encoded, n_best: int | None = None) -> list[Candidates]:
        """The best spans of each question over its windows."""
        assert isinstance(outputs, Ragged)
        asked = asked_of(encoded)
        n_best = self.n_best if n_best is None else n_best
        return best_spans(
            outputs, asked.windows, asked.contexts, longest=self.max_answer_length, n_best=n_best
        )

    def given(self, outputs: Outputs, encoded: Encoded) -> list[str]:
        """The text of each answer; "" for none."""
        found = self.candidates(outputs, encoded, n_best=1)
        contexts = asked_of(encoded).contexts
        return [self._text(one, text) for one, text in zip(found, contexts, strict=True)]

    def _text(self, found: Candidates, context: str) -> str:
        if not found.spans or (self.may_be_none and found.margin > self.none_threshold):
            return ""
        return context[found.spans[0].start : found.spans[0].end]

    def settled(self, outputs: Outputs, encoded: Encoded) -> Answers:
        """The same with the threshold for "no answer" that gives these questions the best mean F1."""
        gold = asked_of(encoded).gold
        if not self.may_be_none or not gold:
            return self
        always = replace(self, may_be_none=False)
        margins = [one.margin for one in self.candidates(outputs, encoded, n_best=1)]
        answered = question_scores(always.given(outputs, encoded), gold)[:, 1]
        unanswered = question_scores([""] * len(gold), gold)[:, 1]
        finite = np.clip(np.array(margins), -1e4, 1e4)
        return replace(self, none_threshold=round(best_threshold(finite, answered, unanswered), 6))

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """Mean F1 over the questions; where "no answer" can be given, with the best threshold for it."""
        task = self.settled(outputs, encoded)
        gold = asked_of(encoded).gold
        assert gold is not None
        scores = question_scores(task.given(outputs, encoded), gold)[:, 1]
        return Decided(float(scores.mean()), float(scores.std() / np.sqrt(len(scores))))

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> AnswerMetrics:
        """F1 and exact match as SQuAD 2's script has them, with intervals over paragraphs."""
        asked = asked_of(encoded)
        assert asked.gold is not None
        return answer_metrics(self.given(outputs, encoded), asked.gold, groups=asked.groups, seed=seed)

    def answers(self, outputs: Outputs, encoded: Encoded) -> list[Answer]:
        """Text, characters and score of the best span; null and null where there is no answer.

        The score is the span's share among the `n_best` spans (and "no answer", where it can be given), by a softmax of
        their start + end logits, as in transformers' example.
        """
        contexts = asked_of(encoded).contexts
        found = self.candidates(outputs, encoded)
        return [self._answer(one, context) for one, context in zip(found, contexts, strict=True)]

    def _answer(self, found: Candidates, context: str) -> Answer:
        logits = np.array([span.score for span in found.spans])
        if self.may_be_none or not len(logits):
            logits = np.append(logits, found.none)
        shares = np.exp(logits - logits.max())
        shares = np.round(shares / shares.sum(), 6)
        others = [
            {"answer": context[span.start : span.end], "start": span.start, "end": span.end, "score": score}
            for span, score in zip(found.spans, shares.tolist(), strict=False)
        ]
        if self._text(found, context):
            return others[0] | {"others": others[1:3]}
        none = {"answer": None, "start": None, "end": None, "score": float(shares[-1])}
        return none | {"others": others[:2]}

    def facts(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Answers:
        """The task that `facts()` describes."""
        return cls(**facts)


def _make(made: Making) -> Answers:
    options: AnswerOptions = made.options
    return Answers(
        options.doc_stride,
        options.max_answer_length,
        options.n_best,
        may_be_none=made.prepared.train.impossible > 0,
    )


def _of_peft(folder: AdapterFolder, base: Base | None) -> Answers:  # noqa: ARG001
    return Answers(token_types=False)


def _inspect(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    task = Answers.from_facts(facts)
    none = "never given: each training question had an answer"
    if task.may_be_none:
        none = f"given where it scores more than {task.none_threshold:g} above the best span"
    return [
        ("windows", f"{task.doc_stride} tokens shared by neighbours, at most half of a window"),
        ("longest answer", f"{task.max_answer_length} tokens"),
        ("no answer", none),
    ]


KIND = Kind(
    name="answers",
    says="the words of a context that answer a question",
    form="span",
    claims=claims,
    prepare=prepare,
    head=lambda _prepared, _options: HeadSpec("span"),
    make=_make,
    from_facts=Answers.from_facts,
    of_peft=_of_peft,
    labelled=labelled_questions,
    card=answer_card,
    findings=answer_findings,
    inspect=_inspect,
    headline=(Headline("f1", "F1"), Headline("exact_match", "Exact match")),
    baselines=answer_baselines,
    settle=Answers.settled,
    options=AnswerOptions,
    roles=tuple(ROLES),
)
