"""Instructions and plain text: what a base writes is taught by examples of it.

The head is the base's own and stays as it is; it runs on the places that the loss reads alone, in pieces (see
`veneer.engine.token_loss`). How examples are written down is the template's, which is stored with the adapter.

Shapes: N examples, M features (a long text has several), T tokens of a batch, S labelled places, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.adapter import AdapterFolder
from veneer.data.choices import Choice
from veneer.data.conversation_columns import ROLES, ConversationForm
from veneer.data.conversations import Conversation, Conversations, conversation_or_prompt
from veneer.data.preview import PreviewText
from veneer.data.ragged import Ragged
from veneer.engine.packing import Layout
from veneer.engine.token_loss import token_losses
from veneer.errors import DataError, InputError
from veneer.evaluation.language import LanguageMetrics, language_metrics, mean_loss
from veneer.models.forms import HeadSpec
from veneer.tasks.base import Answer, Decided, Encoded, Input, Outputs, ScoreForm, Targets
from veneer.tasks.encoding import TokenLists
from veneer.tasks.instruction_data import InstructionOptions, claims, inputs_from, labelled, prepare
from veneer.tasks.instruction_features import Details, Features
from veneer.tasks.instruction_pages import (
    answer,
    baselines,
    card,
    cut_says,
    findings,
    inspect_lines,
    shown_tokens,
    watch,
)
from veneer.tasks.kind import Headline, Kind, Making
from veneer.tasks.rendered import NOT_READ, Cut, Loss, Rendered, Renderer, Rendering
from veneer.tasks.templates import Template, choose_template

__all__ = ["KIND", "Instructions"]

_PIECE = 512  # examples that are tokenised at a time


@dataclass(frozen=True)
class Instructions:
    """The task's own facts.

    Attributes:
        template: how examples are written down.
        data: what an example is; "text" is cut into blocks instead of being cut off.
        reads_loss: "answer": the loss reads the answers alone; "all": the whole text.
        cut: where a long example loses tokens.
        samples: prompts that are answered at each evaluation.
        answer_tokens: tokens that an answer has at most, in samples and predictions.
    """

    template: Template
    data: ConversationForm = "instruction"
    reads_loss: Loss = "answer"
    cut: Cut = "left"
    samples: int = 3
    answer_tokens: int = 128
    name: str = field(default="instructions", init=False)
    head: HeadSpec = field(default=HeadSpec("causal"), init=False)
    inputs: tuple[str, ...] = field(default=("prompt",), init=False)
    per: Literal["text", "token"] = field(default="token", init=False)
    answer_keys: tuple[str, ...] = field(default=("answer",), init=False)

    @property
    def deciding(self) -> ScoreForm:
        """The loss, for it tells small steps apart."""
        return ScoreForm("loss", "Loss", percent=False, higher_is_better=False)

    @property
    def has_answers(self) -> bool:
        """Whether the labelled tokens of an example are an answer."""
        return self.data != "text" and self.reads_loss == "answer"

    def encode(self, rows: Conversations, tokenizer: Any, max_length: int) -> Encoded:
        """Rows as features with the next token at each labelled place.

        Raises:
            DataError: rows that the template can't show, or of which no labelled token is left.
        """
        parts = Features(
            max_length, len(tokenizer), cut=self.cut, blocks=self.data == "text", answers=self.has_answers
        )
        for places, rendered in self._rendered(rows, tokenizer):
            for place, one in zip(places.tolist(), rendered, strict=True):
                parts.add(one, int(rows.rows[place]) + 1)
        renderer = Renderer(self.template, tokenizer)
        parts.with_specials = sum(map(renderer.holds_specials, rows))
        return parts.done(str(rows.table.path), rows.name)

    def encode_inputs(self, inputs: Sequence[Input], tokenizer: Any, max_length: int) -> Encoded:
        """Prompts up to where the answer begins; or, where all carry their answers, features with labels.

        Raises:
            DataError: an input that is no prompt, by its number from 1.
        """
        renderer = Renderer(self.template, tokenizer)
        found = [_conversation(one, number) for number, one in enumerate(inputs, start=1)]
        if found and all(answered for _, answered in found):
            parts = Features(
                max_length, len(tokenizer), cut=self.cut, blocks=self.data == "text", answers=self.has_answers
            )
            for number, one in enumerate(self._render(renderer, [one for one, _ in found], "input"), start=1):
                parts.add(one, number)
            return parts.done("the inputs", "inputs")
        asked = [one.asked if answered else one.turns for one, answered in found]
        try:
            ids = renderer.prompts(asked)
        except ValueError as error:
            place, why = error.args
            raise InputError(place, f": {why}.") from None
        room = max(1, max_length - 1)
        kept = [
            one.cut(room, "left").ids
            for one in (Rendered(row, [False] * len(row), len(renderer.lead())) for row in ids)
        ]
        lengths = np.array([len(row) for row in kept], np.int64)
        cut = sum(len(row) > room for row in ids)
        return Encoded(
            TokenLists(kept), details=Details(lengths), cut=cut, longest=max(map(len, ids), default=0)
        )

    def inputs_of(self, rows: Conversations, places: Sequence[int]) -> list[Input]:
        """The rows' own cells, answers included."""
        return [rows.cells(int(place)) for place in places]

    def full_lengths(self, rows: Conversations, tokenizer: Any) -> NDArray[np.int32]:
        """(N,) tokens of each example before any cut."""
        pieces = (
            max(len(part.ids) for part in one.parts)
            for _, rendered in self._rendered(rows, tokenizer)
            for one in rendered
        )
        return np.fromiter(pieces, np.int32)

    def shown(self, rows: Conversations, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """An example with every token, those that the loss reads marked, and those that are cut off."""
        one = self._render(Renderer(self.template, tokenizer), [rows[place]], str(rows.table.path))[0]
        pairs = [
            (part, part if self.data == "text" else part.cut(max_length, self.cut)) for part in one.parts
        ]
        shown = [list(shown_tokens(*pair, self.cut, tokenizer)) for pair in pairs]
        for number, part in enumerate(shown if len(shown) > 1 else (), start=1):
            part[:1] = [replace(token, begins=f"copy {number} of {len(shown)}") for token in part[:1]]
        tokens = tuple(token for part in shown for token in part)
        title = f"{sum(token.target for token in tokens):,} tokens in the loss"
        title += f", in {len(pairs)} copies" if len(pairs) > 1 else ""
        return PreviewText(rows.name, place, (title,), len(tokens), rows.content(place), tokens)

    def collate(self, targets: Targets) -> Tensor:
        """(T,) int64: the next token of each place, -100 where the loss does not read it."""
        assert isinstance(targets, Ragged)
        return torch.from_numpy(np.ascontiguousarray(targets.values, np.int64))

    def units(self, targets: Targets) -> int:
        """Labelled tokens, so that accumulated batches add up to the mean over all of their tokens."""
        assert isinstance(targets, Ragged)
        return int((targets.values != NOT_READ).sum())

    def reads(self, layout: Layout, targets: Tensor | None = None) -> Tensor:
        """(S,) the labelled places; without labels the last of each feature."""
        return layout.last if targets is None else (targets != NOT_READ).nonzero().squeeze(1)

    def outputs(
        self,
        model: nn.Module,
        states: Tensor,
        layout: Layout,  # noqa: ARG002
        targets: Tensor | None = None,
    ) -> Tensor:
        """(S, 2): the loss of each labelled token, and how far its logit is below the highest (0: the likeliest)."""
        if targets is None:
            raise TypeError(
                "a language model's outputs are losses, and without labels there are none; let it generate"
            )
        m: Any = model
        cap = getattr(m.config, "final_logit_softcapping", None)
        return token_losses(states, targets[targets != NOT_READ], m.get_output_embeddings(), softcap=cap)

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout) -> Tensor:  # noqa: ARG002
        """The mean over the labelled tokens."""
        return outputs[:, 0].mean()

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:  # noqa: ARG002
        """The mean over all labelled tokens."""
        assert isinstance(outputs, Ragged)
        return float(outputs.values[:, 0].mean(dtype=np.float64))

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """Minus the loss; examples are what is drawn, not tokens."""
        losses, _, examples = _by_token(outputs, encoded)
        mean, error = mean_loss(losses, examples)
        return Decided(-mean, error)

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> LanguageMetrics:
        """Loss, perplexity, right tokens, exact match."""
        losses, right, examples = _by_token(outputs, encoded)
        return language_metrics(losses, right, examples, answers=self.has_answers, seed=seed)

    def answers(self, outputs: Outputs, encoded: Encoded) -> list[Answer]:
        """How well each example's own answer is foretold; what a model writes itself is generated."""
        losses, right, examples = _by_token(outputs, encoded)
        n = encoded.examples
        counts = np.maximum(np.bincount(examples, minlength=n), 1)
        means = np.bincount(examples, weights=losses, minlength=n) / counts
        hits = np.bincount(examples, weights=right, minlength=n)
        return [
            {"loss": round(float(mean), 6), "right_tokens": int(hit), "tokens": int(count)}
            for mean, hit, count in zip(means, hits, counts, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return {
            "template": self.template.to_dict(),
            "data": self.data,
            "reads_loss": self.reads_loss,
            "cut": self.cut,
            "samples": self.samples,
            "answer_tokens": self.answer_tokens,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Instructions:
        """The task that `facts()` describes."""
        return cls(**{**facts, "template": Template.from_dict(facts["template"])})

    def _rendered(
        self, rows: Conversations, tokenizer: Any
    ) -> Iterator[tuple[NDArray[np.int64], list[Rendering]]]:
        renderer = Renderer(self.template, tokenizer)
        for start in range(0, len(rows), _PIECE):
            places = np.arange(start, min(start + _PIECE, len(rows)), dtype=np.int64)
            numbers = rows.rows[places] + 1
            yield places, self._render(renderer, list(rows.iterate(places)), str(rows.table.path), numbers)

    def _render(
        self, renderer: Renderer, many: Sequence[Conversation], where: str, numbers: Any = None
    ) -> list[Rendering]:
        if self.data == "text" or all(one.text is not None for one in many):
            return [Rendering([one]) for one in renderer.texts([one.text or "" for one in many])]
        try:
            return renderer.conversations(many, self.reads_loss)
        except ValueError as error:
            place, why = error.args
            number = place + 1 if numbers is None else int(numbers[place])
            raise DataError(f"{where}, row {number:,} (counted from 1): {why}.") from None


def _conversation(one: Input, number: int) -> tuple[Conversation, bool]:
    try:
        return conversation_or_prompt({"prompt": one} if isinstance(one, str) else one)
    except ValueError as error:
        raise InputError(number - 1, f": {error}.") from None


def _by_token(
    outputs: Outputs, encoded: Encoded
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Losses, whether right, and the example, of every labelled token."""
    assert isinstance(outputs, Ragged)
    features = np.arange(len(outputs)) if encoded.example is None else encoded.example
    values = outputs.values
    return values[:, 0], values[:, 1] == 0, np.repeat(features, outputs.lengths)


def _make(made: Making) -> Instructions:
    given: InstructionOptions = made.options
    form: ConversationForm = made.prepared.train.columns.form
    template = Template("none")
    if form != "text":
        template, reason, warning = choose_template(given.template, made.base.tokenizer, made.base.name)
        made.notes.choices.append(Choice("template", template.says, reason))
        if warning is not None:
            made.notes.warnings.append(warning)
    return Instructions(template, form, given.loss, given.cut, given.samples, given.answer_tokens)


def _of_peft(folder: AdapterFolder, base: Any) -> Instructions:  # noqa: ARG001
    """A folder without our facts: the base's own chat template, else texts as they stand."""
    if base is None or not getattr(base.tokenizer, "chat_template", None):
        return Instructions(Template("none"), "prompt")
    return Instructions(choose_template("base", base.tokenizer, base.name)[0], "messages")


KIND = Kind(
    name="instructions",
    says="text that answers or goes on",
    form="causal",
    claims=claims,
    prepare=prepare,
    head=lambda _prepared, _options: HeadSpec("causal"),
    make=_make,
    from_facts=Instructions.from_facts,
    of_peft=_of_peft,
    labelled=labelled,
    card=card,
    findings=findings,
    inspect=inspect_lines,
    headline=(
        Headline("loss", "loss", percent=False),
        Headline("exact_match", "exact match"),
        Headline("token_accuracy", "right tokens"),
        Headline("perplexity", "perplexity", percent=False),
    ),
    options=InstructionOptions,
    baselines=baselines,
    answer=answer,
    cut_says=cut_says,
    watch=watch,
    inputs_from=inputs_from,
    roles=ROLES,
)
