"""The classification head of a transformers model, applied to pooled states instead of padded ones.

transformers builds its `...ForSequenceClassification` classes in a handful of forms. Each is told by the modules it
has, not by a list of model names, so that a family that follows a known form works without being named here.

This file knows the forms of the heads; it knows no data and no loss.

Shapes: B texts, C hidden size, K labels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from veneer.errors import BaseError

__all__ = [
    "Pooling",
    "check_head",
    "head_code",
    "head_logits",
    "head_modules",
    "native_pooling",
    "unread_modules",
]

Pooling = Literal["mean", "first", "last"]


def native_pooling(model: nn.Module) -> Pooling:
    """Which state transformers' own class reads: the last token (decoders), the first, or the mean.

    Raises:
        BaseError: the model has no classification head of a known form.
    """
    form = _form(model)
    if form == "score":
        return "last"
    if form != "prediction_head":
        return "first"
    named = {"mean": "mean", "cls": "first"}
    pooling: Pooling = named.get(getattr(model.config, "classifier_pooling", ""), "last")  # type: ignore[assignment]
    return pooling  # ModernBERT says which; its decoder has no choice


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
        pooled = _through_pooler(m, form, pooled)
    return m.classifier(m.dropout(pooled))


def _through_pooler(m: Any, form: str, pooled: Tensor) -> Tensor:
    if form == "deberta":
        return m.pooler(pooled.unsqueeze(1))
    pooler = m.base_model.pooler
    if isinstance(pooler, nn.Linear) or hasattr(pooler, "base_layer"):  # ALBERT: a layer, its tanh beside it
        return m.base_model.pooler_activation(pooler(pooled))
    return pooler(pooled.unsqueeze(1))


def head_code(model: nn.Module, pooled: str) -> str:
    """`head_logits` as a line of Python over transformers' model, for people who read an adapter without Veneer.

    Args:
        model: called `base` in the line.
        pooled: the expression of the pooled states (B, C); of another pooling than BERT's and DeBERTa's own.

    >>> head_code(bert, "states.mean(1)")  # doctest: +SKIP
    'base.classifier(states.mean(1))'
    """
    form = _form(model)
    if form == "score":
        return f"base.score({pooled})"
    if form == "distilbert":
        return f"base.classifier(torch.relu(base.pre_classifier({pooled})))"
    if form == "prediction_head":
        return f"base.classifier(base.head({pooled}))"
    if form == "classification_head":
        return f"base.classifier(({pooled}).unsqueeze(1))"
    return f"base.classifier({pooled})"


def check_head(model: nn.Module) -> None:
    """Hold `head_logits` against the model's own forward on two short texts.

    Raises:
        BaseError: they differ, so that a head of this form would answer something else than transformers does.
    """
    m: Any = model
    pooling = native_pooling(model)
    vocabulary = int(m.config.get_text_config().vocab_size)
    ids = torch.arange(10, device=m.device).view(2, 5) % (vocabulary - vocabulary // 2) + vocabulary // 2
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=m.device)
    ids = ids.masked_fill(mask == 0, m.config.pad_token_id or 0)
    try:
        with torch.no_grad():
            expected = m(input_ids=ids, attention_mask=mask).logits
            states = m.base_model(input_ids=ids, attention_mask=mask)[0]  # (2, 5, C)
            inside = mask.unsqueeze(-1)
            pooled = {
                "first": states[:, 0],
                "last": states[torch.arange(2), mask.sum(1) - 1],
                "mean": (states * inside).sum(1) / inside.sum(1),
            }[pooling]
            found = head_logits(model, pooled, pooling)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BaseError(
            f"{type(model).__name__} can't be run on plain token ids ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:120]}), so Veneer can't use it."
        ) from error
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise BaseError(
            f"The head of {type(model).__name__} does not answer as transformers computes it: it reads something else "
            f"than the {pooling} token's state. Veneer can't use this base. Known forms: those of GPT-2 and the "
            "decoders, BERT, RoBERTa, DistilBERT, ModernBERT, DeBERTa."
        )


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


def pooler_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of modules of the base that stand between the pooled state and the head, and read float32 as it does."""
    m: Any = model
    return (f"{m.base_model_prefix}.pooler",) if _form(model) == "bert" else ()


def unread_modules(model: nn.Module, pooling: Pooling) -> tuple[str, ...]:
    """Names of layers with weights that no output depends on with this pooling: adapting them would train nothing."""
    m: Any = model
    if pooling == "first":
        return ()
    place = {"bert": f"{m.base_model_prefix}.pooler", "deberta": "pooler"}.get(_form(model))
    if place is None:
        return ()
    pooler = m.get_submodule(place)
    inside = [name for name, layer in pooler.named_modules() if isinstance(layer, nn.Linear)]
    return tuple(f"{place}.{name}" if name else place for name in inside)
