"""The classification head of a transformers model, applied to pooled states instead of padded ones.

transformers builds its `...ForSequenceClassification` classes in a handful of forms. Each is told by the modules it
has, not by a list of model names, so that a family that follows a known form works without being named here.

This file knows the forms of the heads; it knows no data and no loss.

Shapes: B texts, C hidden size, K labels.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from veneer.errors import BaseError

__all__ = ["Pooling", "head_logits", "head_modules", "native_pooling", "unread_modules"]

Pooling = Literal["mean", "first", "last"]


def native_pooling(model: nn.Module) -> Pooling:
    """Which state transformers' own class reads: the last token (decoders), the first, or the mean.

    Raises:
        BaseError: the model has no classification head of a known form.
    """
    form = _form(model)
    if form == "score":
        return "last"
    config: Any = model.config
    if form == "prediction_head" and config.classifier_pooling == "mean":
        return "mean"
    return "first"


def head_logits(model: nn.Module, pooled: Tensor, pooling: Pooling) -> Tensor:
    """(B, K) logits from pooled states (B, C), through the head's own layers.

    A pooler (BERT's dense + tanh) belongs to the first token's state, as it was trained; another pooling goes past it.
    """
    m: Any = model
    form = _form(model)
    if form == "score":
        return m.score(pooled)
    if form == "distilbert":
        return m.classifier(m.dropout(nn.functional.relu(m.pre_classifier(pooled))))
    if form == "prediction_head":
        return m.classifier(m.drop(m.head(pooled)))
    if form == "classification_head":
        return m.classifier(pooled.unsqueeze(1))
    if pooling == "first":
        pooled = (m.pooler if form == "deberta" else m.base_model.pooler)(pooled.unsqueeze(1))
    return m.classifier(m.dropout(pooled))


def head_modules(
    model: nn.Module, pooling: Pooling, newly_made: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Names of the modules that are trained whole and saved: everything of the head that holds parameters.

    `newly_made` are parameter names that the checkpoint did not have (a BERT without a pooler): if the head reads
    them, they are trained and saved as well, else the saved adapter would depend on random numbers.
    """
    m: Any = model
    prefix = m.base_model_prefix
    names = [
        name for name, child in m.named_children() if name != prefix and any(True for _ in child.parameters())
    ]
    form = _form(model)
    if form == "deberta" and pooling != "first":
        names.remove("pooler")
    if (
        form == "bert"
        and pooling == "first"
        and any(name.startswith(f"{prefix}.pooler.") for name in newly_made)
    ):
        names.append(f"{prefix}.pooler")
    return tuple(names)


def _form(model: nn.Module) -> str:
    m: Any = model
    if hasattr(m, "score"):
        return "score"
    if hasattr(m, "pre_classifier") and hasattr(m, "classifier"):
        return "distilbert"
    if hasattr(m, "head") and hasattr(m, "drop") and hasattr(m, "classifier"):
        return "prediction_head"  # ModernBERT
    if hasattr(m, "classifier"):
        inside = {name.split(".")[-1] for name, _ in m.classifier.named_modules()}
        if "out_proj" in inside:
            return "classification_head"  # RoBERTa, XLM-R, ELECTRA, MPNet
        if hasattr(m, "pooler"):
            return "deberta"
        if getattr(m.base_model, "pooler", None) is not None:
            return "bert"
    raise BaseError(
        f"Veneer does not know the classification head of {type(model).__name__}. "
        "Known forms: those of GPT-2 and the decoders, BERT, RoBERTa, DistilBERT, ModernBERT, DeBERTa."
    )


def unread_modules(model: nn.Module, pooling: Pooling) -> tuple[str, ...]:
    """Names of layers with weights that no output depends on with this pooling: adapting them would train nothing."""
    m: Any = model
    if _form(model) == "bert" and pooling != "first":
        prefix = m.base_model_prefix
        return tuple(
            f"{prefix}.pooler.{name}" for name, _ in m.base_model.pooler.named_children() if name == "dense"
        )
    return ()
