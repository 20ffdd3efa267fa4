"""The head, read from pooled states, against transformers' own logits; tolerance 1e-5, fp32 and one matrix product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from reference.families import FAMILIES, PADDED_ONLY, Family, family_of
from veneer.errors import BaseError
from veneer.models.heads import (
    check_head,
    head_code,
    head_logits,
    head_modules,
    native_pooling,
    unread_modules,
)

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MORE: dict[str, Family] = {
    "ALBERT": family_of("Albert", _SIZES | {"embedding_size": 16}, "its pooler is a bare layer"),
    "ELECTRA": family_of("Electra", _SIZES | {"embedding_size": 16}, "gelu in the head"),
    "XLM-R": family_of("XLMRoberta", _SIZES, "as RoBERTa", pad_token_id=1),
    "MPNet": family_of("MPNet", _SIZES, "relative positions", pad_token_id=1),
    "ModernBERT mean": family_of(
        "ModernBert", _SIZES, "mean", classifier_pooling="mean", bos_token_id=2, eos_token_id=3, cls_token_id=2,
        sep_token_id=3,
    ),
    "ModernBERT decoder": family_of(
        "ModernBertDecoder", _SIZES, "a head of layers, last token", bos_token_id=2, eos_token_id=3,
        cls_token_id=2, sep_token_id=3,
    ),
    "OPT": family_of(
        "OPT",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24},
        "score",
        word_embed_proj_dim=16,
    ),
}  # fmt: skip
ALL = {**FAMILIES, **PADDED_ONLY, **MORE}


def run(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """transformers' logits, its last hidden states and the mask, for two texts, one of them padded."""
    ids = torch.tensor([[7, 8, 9, 10, 11, 12], [13, 14, 15, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    ids[mask == 0] = model.config.pad_token_id
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        states = model.base_model(input_ids=ids, attention_mask=mask)[0]
    return logits, states, mask


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return torch.stack([row[int(n) - 1] for row, n in zip(states, mask.sum(1), strict=True)])
    return torch.stack([row[: int(n)].mean(0) for row, n in zip(states, mask.sum(1), strict=True)])


@pytest.mark.parametrize("name", ALL)
def test_logits_are_those_of_transformers(name: str) -> None:
    model = ALL[name].model()
    expected, states, mask = run(model)
    pooling = native_pooling(model)
    with torch.no_grad():
        found = head_logits(model, pooled(states, mask, pooling), pooling)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    check_head(model)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("BERT", "first"),
        ("GPT-2", "last"),
        ("ModernBERT mean", "mean"),
        ("ModernBERT decoder", "last"),
        ("ALBERT", "first"),
    ],
)
def test_native_pooling(name: str, pooling: str) -> None:
    assert native_pooling(ALL[name].model()) == pooling


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_the_head_depends_on_its_modules_and_on_no_unread_one(name: str, pooling: Any) -> None:
    """What is trained whole has a gradient; what is called unread has none."""
    model = ALL[name].model()
    head_logits(model, torch.randn(4, 16), pooling).square().sum().backward()
    read = {n for n, p in model.named_parameters() if p.grad is not None}
    for module in head_modules(model, pooling):
        inside = {f"{module}.{n}" for n, _ in model.get_submodule(module).named_parameters()}
        assert inside
        assert inside <= read
    unread = unread_modules(model, pooling)
    for module in unread:
        assert isinstance(model.get_submodule(module), torch.nn.Linear)
        assert not any(n.startswith(module) for n in read)
    poolers = {n for n, m in model.named_modules() if "pooler" in n and isinstance(m, torch.nn.Linear)}
    assert set(unread) == (set() if pooling == "first" else poolers)


@pytest.mark.parametrize("name", ALL)
def test_the_head_as_code_is_the_head(name: str) -> None:
    base = ALL[name].model()
    states = torch.randn(4, 16)
    for pooling in {"mean", "first", "last"} - {native_pooling(base)}:
        expected = head_logits(base, states, pooling)  # type: ignore[arg-type]
        found = eval(head_code(base, "states"), {"torch": torch, "base": base, "states": states})
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_head_of_an_unknown_form_is_refused_by_its_name() -> None:
    config = transformers.T5Config(
        d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=40, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    with pytest.raises(
        BaseError, match="does not know the classification head of T5ForSequenceClassification"
    ):
        native_pooling(transformers.T5ForSequenceClassification(config))


def test_a_head_that_reads_more_than_a_state_is_found_and_refused() -> None:
    """Longformer's class gives its first token attention over the whole text, which the body alone does not."""
    special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    family = family_of("Longformer", _SIZES, "", attention_window=[4, 4], **special)
    with pytest.raises(
        BaseError, match="LongformerForSequenceClassification does not answer as transformers"
    ):
        check_head(family.model())


def test_a_model_that_can_not_be_run_on_tokens_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["BERT"].model()

    def forward(**_: Any) -> None:
        raise ValueError("You have to specify pixel_values")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(BaseError, match=r"can't be run on plain token ids .*pixel_values"):
        check_head(model)
