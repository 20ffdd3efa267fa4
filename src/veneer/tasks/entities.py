"""Entities: spans of named things in each text (token classification).

The head gives BIO labels, read at the first token of each word; the loss is over those tokens alone. What the data
call their tags does not matter (see `veneer.data.tags`): a prediction is always spans of characters of the text as it
was given.

Shapes: N texts, M windows, S tokens that are read, W words of a text, K labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.adapter import AdapterFolder
from veneer.data.entities import EntityRows
from veneer.data.preview import PreviewText, ShownToken
from veneer.data.ragged import Ragged
from veneer.data.sources import Source
from veneer.data.tags import OUTSIDE, Entity, entities_of, is_prefixed
from veneer.data.words import WordRule, words_of
from veneer.engine.packing import Layout
from veneer.errors import DataError, nearest
from veneer.evaluation.entities import EntityCounts, EntityMetrics, count_entities, entity_metrics, micro_f1
from veneer.models import Base
from veneer.models.forms import HeadSpec
from veneer.tasks.base import Answer, Decided, Encoded, Input, Outputs, ScoreForm, Targets
from veneer.tasks.encoding import token_shower
from veneer.tasks.entity_pages import entity_baselines, entity_card, entity_findings, entity_lines
from veneer.tasks.entity_rows import (
    EntityOptions,
    claims_entities,
    entity_inputs,
    entity_labels,
    labelled_entities,
    prepare_entities,
)
from veneer.tasks.entity_words import ReadWords, answer_of, given_words, of_words
from veneer.tasks.kind import Headline, Kind, Labelled, Making
from veneer.tasks.pooling import head_outputs
from veneer.tasks.token_head import TokenHead
from veneer.tasks.word_tokens import READ, UNREAD, WordTokens, whole_text, word_tokens

__all__ = ["KIND", "Entities"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entities(TokenHead):
    """The task's own facts.

    Attributes:
        labels: K labels of the head: "O", then B- and I- of each type.
        words: how running text is cut into words: as the training data were, or as comes nearest to them.
    """

    labels: tuple[str, ...]
    words: WordRule = "fine"
    name: str = field(default="entities", init=False)
    inputs: tuple[str, ...] = field(default=("text",), init=False)
    per: Literal["text", "token"] = field(default="token", init=False)
    deciding: ScoreForm = field(default=ScoreForm("f1", "Entity F1"), init=False)
    answer_keys: tuple[str, ...] = field(default=("entities",), init=False)

    @property
    def head(self) -> HeadSpec:
        """A label for each token."""
        return HeadSpec("tokens", self.labels)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of entities."""
        return tuple(dict.fromkeys(label[2:] for label in self.labels if is_prefixed(label)))

    # ---- what the model reads

    def encode(self, rows: EntityRows, tokenizer: Any, max_length: int) -> Encoded:
        """Rows as windows with a label at the first token of each word.

        Raises:
            DataError: types of entities that the task does not know; no word has a token.
        """
        numbers = self.numbers(rows)
        found = word_tokens(((row.text, row.words) for row in rows), tokenizer, max_length)
        if len(rows) and not len(found.words.values):
            raise DataError(
                f"{rows.table.path}: the base's tokenizer has no token for any of {len(rows.tags.values):,} words, so "
                "that nothing can be learnt or measured. Is it the base's own? Save it there again."
            )
        first_words = found.words.values[:, 2] + np.repeat(rows.tags.offsets[:-1], found.words.lengths)
        targets = found.reads.values.copy()
        targets[targets == READ] = numbers[rows.tags.values[first_words]]
        return _encoded(found, Ragged(targets, found.reads.offsets), ReadWords(found.words, rows))

    def numbers(self, rows: EntityRows) -> NDArray[np.int64]:
        """The task's number for each label of the rows."""
        unknown = [kind for kind in rows.types if f"B-{kind}" not in self.labels]
        if unknown:
            near = nearest(unknown[0], self.types)
            raise DataError(
                f"{rows.table.path} marks entities of the type {', '.join(map(repr, unknown[:5]))}, which this adapter "
                f"does not know. {near} Known types: {', '.join(self.types)}."
            )
        return np.array([self.labels.index(label) for label in rows.names], np.int64)

    def encode_inputs(self, inputs: Sequence[Input], tokenizer: Any, max_length: int) -> Encoded:
        """Texts, or {"tokens": a JSON list} for a text that is already cut into words.

        Raises:
            DataError: neither of them.
        """
        given = tuple(given_words(one, place) for place, one in enumerate(inputs))
        texts = ((text, places or words_of(text, self.words)) for text, places in given)
        found = word_tokens(texts, tokenizer, max_length)
        return _encoded(found, found.reads, ReadWords(found.words, given=given))

    def inputs_of(self, rows: EntityRows, places: Sequence[int]) -> list[Input]:
        """Texts; lists of tokens where the rows are such."""
        if rows.columns.form == "spans":
            return [rows[place].text for place in places]
        return [{"tokens": json.dumps(rows.tokens(place), ensure_ascii=False)} for place in places]

    def full_lengths(self, rows: EntityRows, tokenizer: Any) -> NDArray[np.int32]:
        """(N,) tokens of each text in one piece."""
        return word_tokens(((row.text, row.words) for row in rows), tokenizer, 2**31 - 1).lengths

    def shown(self, rows: EntityRows, place: int, tokenizer: Any, max_length: int) -> PreviewText:
        """A row with the tokens that the loss reads, and the label of each."""
        row = rows[place]
        tokens = token_shower(tokenizer, max(max_length, 2**31 - 1))(row.text)
        reads, words = whole_text(row.text, row.words, tokenizer)
        told = iter([rows.names[row.tags[word]] for word in words[:, 2]])
        shown = tuple(
            ShownToken(token.text, token.special, True, True, next(told)) if mark == READ else token
            for token, mark in zip(tokens, reads, strict=True)
        )
        entities = entities_of([rows.names[tag] for tag in row.tags], "BIO")
        labels = tuple(
            f"{kind}: {row.text[row.words[first][0] : row.words[stop - 1][1]]}"
            for first, stop, kind in entities
        )
        return PreviewText(rows.name, place, labels, len(shown), row.text, shown)

    # ---- the head and the loss

    def collate(self, targets: Targets) -> Tensor:
        """(T,) int64: the labels of a batch end to end."""
        assert isinstance(targets, Ragged)
        return torch.from_numpy(np.ascontiguousarray(targets.values, np.int64))

    def units(self, targets: Targets) -> int:
        """How many words are labelled."""
        assert isinstance(targets, Ragged)
        return int((targets.values != UNREAD).sum())

    def reads(self, layout: Layout, targets: Tensor | None = None) -> Tensor | None:  # noqa: ARG002
        """(S,) the first token of each word."""
        return None if targets is None else torch.nonzero(targets != UNREAD).squeeze(1)

    def loss(self, outputs: Tensor, targets: Tensor, layout: Layout) -> Tensor:  # noqa: ARG002
        """Cross-entropy, the mean over the labelled words."""
        return nn.functional.cross_entropy(outputs, targets[targets != UNREAD])

    # ---- what comes of it

    def evaluation_loss(self, outputs: Outputs, encoded: Encoded) -> float:
        """The same over many texts."""
        assert isinstance(encoded.targets, Ragged)
        given = encoded.targets.values
        given = given[given != UNREAD]
        chances = self.probabilities(outputs)[np.arange(len(given)), given]
        return float(-np.log(np.maximum(chances, np.finfo(np.float64).tiny)).mean()) if len(given) else 0.0

    def probabilities(self, outputs: Outputs) -> Floats:
        """(S, K) of each word that was read, in order."""
        assert isinstance(outputs, Ragged)
        logits = outputs.values.astype(np.float64).reshape(-1, len(self.labels))
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits / logits.sum(axis=1, keepdims=True)

    def found(self, outputs: Outputs, encoded: Encoded) -> list[list[Entity]]:
        """The entities of each text as words of it: (first, the one after the last, type)."""
        assert isinstance(outputs, Ragged)
        tags = outputs.values.reshape(-1, len(self.labels)).argmax(axis=1)
        words: Ragged = encoded.details.words
        return [
            of_words(words[place], self.decode(tags[words.offsets[place] : words.offsets[place + 1]]))
            for place in range(len(words))
        ]

    def decode(self, tags: Iterable[int]) -> list[Entity]:
        """Numbers of labels as entities; I- where nothing began begins one, as seqeval's default mode has it."""
        names = [self.labels[tag] for tag in tags]
        return entities_of(names, "BIO" if all(map(is_prefixed, self.labels[1:])) else "plain")

    def counts(self, outputs: Outputs, encoded: Encoded) -> EntityCounts:
        """Given and found entities compared."""
        rows = encoded.details.rows
        assert rows is not None
        return count_entities(rows.entities(), self.found(outputs, encoded), self.types)

    def score(self, outputs: Outputs, encoded: Encoded) -> Decided:
        """Micro-F1 of entities."""
        return Decided(*micro_f1(self.counts(outputs, encoded)))

    def metrics(self, outputs: Outputs, encoded: Encoded, *, seed: int = 0) -> EntityMetrics:
        """Precision, recall, F1, over all and of each type, with bootstrap intervals."""
        return entity_metrics(self.counts(outputs, encoded), seed=seed)

    def answers(self, outputs: Outputs, encoded: Encoded) -> list[Answer]:
        """The entities of each text: start, end, label, text, score.

        The score is the mean probability of the label of each of its words. A text that was given as tokens also gets
        "tags", one for each, and each entity "tokens": its first one and the one after its last.
        """
        details: ReadWords = encoded.details
        chances = self.probabilities(outputs)
        tags, sure = chances.argmax(axis=1), chances.max(axis=1, initial=0.0)
        answers = []
        for place in range(len(details.words)):
            own = slice(details.words.offsets[place], details.words.offsets[place + 1])
            entities = self.decode(tags[own])
            answers.append(answer_of(*details.text(place), details.words[place], entities, sure[own]))
        return answers

    def facts(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return {"labels": list(self.labels), "words": self.words}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Entities:
        """The task that `facts()` describes."""
        return cls(labels=tuple(facts["labels"]), words=facts["words"])


def _encoded(found: WordTokens, targets: Ragged, details: ReadWords) -> Encoded:
    return Encoded(
        ids=found.ids,
        targets=targets,
        example=found.example,
        details=details,
        longest=int(found.lengths.max(initial=0)),
        full_lengths=found.lengths,
    )


def _head(prepared: Any, options: Any) -> HeadSpec:  # noqa: ARG001
    return HeadSpec("tokens", entity_labels(prepared))


def _make(made: Making) -> Entities:
    return Entities(labels=entity_labels(made.prepared), words=made.prepared.train.rule)


def _of_peft(folder: AdapterFolder, base: Base | None) -> Entities:  # noqa: ARG001
    """PEFT's folders do not name their labels: the first one is taken for "O", as it is in most data sets."""
    n = head_outputs(folder)
    return Entities(labels=(OUTSIDE, *(f"LABEL_{place}" for place in range(1, n))), words="edges")


def _labelled(task: Entities, data: Mapping[str, Any], source: Source) -> Labelled:
    return labelled_entities(task.types, data, source)


KIND = Kind(
    name="entities",
    says="spans of named things in each text",
    form="tokens",
    claims=claims_entities,
    prepare=prepare_entities,
    head=_head,
    make=_make,
    from_facts=Entities.from_facts,
    of_peft=_of_peft,
    labelled=_labelled,
    card=entity_card,
    findings=entity_findings,
    inspect=entity_lines,
    headline=(Headline("f1", "entity F1"), Headline("precision", "precision"), Headline("recall", "recall")),
    options=EntityOptions,
    baselines=entity_baselines,
    inputs_from=entity_inputs,
    roles=("text", "tokens", "tags", "spans", "label"),
)
