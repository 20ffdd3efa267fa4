"""The kinds of heads that a base can carry, as transformers has them, and the head run on states alone.

    sequence    one answer a text     AutoModelForSequenceClassification    (its forms are in `heads`)
    tokens      one a token           AutoModelForTokenClassification
    span        where it starts and ends    AutoModelForQuestionAnswering
    causal      the next token        AutoModelForCausalLM; its head is the base's own and never trained

This file knows transformers' classes; it knows no data and no loss.

Shapes: B texts, L tokens, S states, C hidden size, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from veneer.errors import BaseError
from veneer.naming import setting

__all__ = [
    "HEAD_CLASSES",
    "SEQUENCE",
    "HeadForm",
    "HeadSpec",
    "auto_class",
    "body_head",
    "check_form",
    "check_token_head",
    "is_decoder",
    "sequence_head",
    "token_logits",
]

HeadForm = Literal["sequence", "tokens", "span", "causal"]


@dataclass(frozen=True)
class HeadClass:
    """How transformers and PEFT call a form, and what it is for in words."""

    auto: str
    peft_task: str
    says: str


HEAD_CLASSES: Mapping[HeadForm, HeadClass] = {
    "sequence": HeadClass("AutoModelForSequenceClassification", "SEQ_CLS", "one answer for each text"),
    "tokens": HeadClass("AutoModelForTokenClassification", "TOKEN_CLS", "a label for each token"),
    "span": HeadClass("AutoModelForQuestionAnswering", "QUESTION_ANS", "a span of the text as the answer"),
    "causal": HeadClass("AutoModelForCausalLM", "CAUSAL_LM", "text that goes on"),
}


@dataclass(frozen=True)
class HeadSpec:
    """Which head a task needs.

    Attributes:
        form: one of `HEAD_CLASSES`.
        labels: names of its K outputs; empty for "span" and "causal", whose outputs are given.
        problem: transformers' `problem_type`, for "sequence".
    """

    form: HeadForm
    labels: tuple[str, ...] = ()
    problem: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` is given for it."""
        found: dict[str, Any] = {}
        if self.form == "span":
            found["num_labels"] = 2
        elif self.labels:
            found["num_labels"] = len(self.labels)
            found["id2label"] = dict(enumerate(self.labels))
            found["label2id"] = {label: i for i, label in enumerate(self.labels)}
        return found | ({"problem_type": self.problem} if self.problem else {})


SEQUENCE = HeadSpec("sequence")
"""A classification head of any size."""


def sequence_head(labels: Sequence[str], *, multi_label: bool = False) -> HeadSpec:
    """The head of a classifier."""
    several = "multi_label_classification" if multi_label else "single_label_classification"
    return HeadSpec("sequence", tuple(labels), several)


def auto_class(form: HeadForm) -> Any:
    """transformers' Auto class of a form."""
    import transformers

    return getattr(transformers, HEAD_CLASSES[form].auto)


def is_decoder(config: Any) -> bool:
    """True where a token sees only what stands before it: a family that transformers has as a language model and
    not as a masked one (GPT-2, Llama, ...; not BERT, which it also lists as a decoder).
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    family = str(config.model_type)
    return family in CAUSAL and family not in MASKED


def check_form(config: Any, form: HeadForm, name: str) -> None:
    """Whether a base of this configuration can carry a head of this form; asked before any weight is loaded.

    Raises:
        BaseError: an encoder for "causal", or a family without such a class in transformers.
    """
    if form == "causal" and not is_decoder(config):
        raise BaseError(
            f"{name} is an encoder ({config.model_type}): each token sees what comes after it, so it can't go on with "
            f"a text. Name a base that writes, a decoder such as openai-community/gpt2, with {setting('base')}."
        )
    if form == "sequence":  # `heads` says what is wrong with one of these
        return
    if type(config) not in auto_class(form)._model_mapping:
        raise BaseError(
            f"{name} ({config.model_type}) has no {HEAD_CLASSES[form].auto} in transformers, so it can't give "
            f"{HEAD_CLASSES[form].says}. Name another base with {setting('base')}."
        )


def body_head(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules above the body that hold parameters: the head of a "tokens" or "span" model."""
    m: Any = model
    return tuple(
        name
        for name, child in m.named_children()
        if name != m.base_model_prefix and any(True for _ in child.parameters())
    )


def token_logits(model: nn.Module, states: Tensor) -> Tensor:
    """(S, K) what a "tokens", "span" or "causal" head says of states (S, C), through its own layers.

    Raises:
        BaseError: the head is not of a form that Veneer knows.
    """
    m: Any = model
    for name in ("qa_outputs", "score"):
        if hasattr(m, name):
            dropout = getattr(m, "dropout", None)
            return getattr(m, name)(dropout(states) if isinstance(dropout, nn.Module) else states)
    if hasattr(m, "classifier"):
        if hasattr(m, "head") and hasattr(m, "drop"):  # ModernBERT
            return m.classifier(m.drop(m.head(states)))
        return m.classifier(m.dropout(states) if hasattr(m, "dropout") else states)
    output = m.get_output_embeddings()
    if output is None:
        raise BaseError(f"Veneer does not know the head of {type(model).__name__}: it has no output layer.")
    logits = output(states)
    cap = getattr(m.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def check_token_head(model: nn.Module) -> None:
    """Hold `token_logits` against the model's own forward on two short texts.

    Raises:
        BaseError: they differ, so that the head would answer something else than transformers does.
    """
    m: Any = model
    vocabulary = int(m.config.get_text_config().vocab_size)
    ids = torch.arange(10, device=m.device).view(2, 5) % (vocabulary - vocabulary // 2) + vocabulary // 2
    try:
        with torch.no_grad():
            out = m(input_ids=ids)
            expected = (
                out.logits if hasattr(out, "logits") else torch.stack([out.start_logits, out.end_logits], -1)
            )
            found = token_logits(model, m.base_model(input_ids=ids)[0])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BaseError(
            f"{type(model).__name__} can't be run on plain token ids ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:120]}), so Veneer can't use it."
        ) from error
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise BaseError(
            f"The head of {type(model).__name__} does not answer as transformers computes it: it reads something else "
            "than each token's last state. Veneer can't use this base for this task."
        )
