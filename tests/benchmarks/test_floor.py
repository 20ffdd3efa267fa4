"""The floor's count of operations, against numbers worked out by hand and against PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from benchmarks.workloads import WORKLOADS
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from benchmarks import floor

C, F = 8, 32
ALL = {floor.QKV: 2, floor.OUT: 2, floor.UP: 2, floor.DOWN: 2}


@pytest.mark.parametrize(
    ("pieces", "rank", "train", "below", "expected"),
    [
        ([(5, 6)], 0, False, True, 2 * 5 * 4 * 6),  # x W
        ([(5, 6)], 0, True, False, 2 * 5 * 4 * 6),  # nothing to train: no gradient
        ([(5, 6)], 0, True, True, 2 * 5 * 4 * 6 * 2),  # x W and dY W
        ([(5, 6)], 3, False, True, 2 * 5 * 4 * 6 + 2 * 5 * 3 * (4 + 6)),  # and x A, h B
        # and dY B, gradient of B, gradient of A; nothing below: no dX
        ([(5, 6)], 3, True, False, 2 * 5 * 4 * 6 + 2 * 5 * 3 * (4 + 6) + 2 * 5 * 3 * (6 + 6 + 4)),
        ([(5, 6)], 3, True, True, 4 * 5 * 4 * 6 + 2 * 5 * 3 * (4 + 6) * 3),
        (
            [(2, 6), (5, 7)],
            0,
            False,
            True,
            2 * 4 * (2 * 6 + 5 * 7),
        ),  # a part of the outputs for some rows only
    ],
)
def test_one_layer(pieces: list[tuple[int, int]], rank: int, train: bool, below: bool, expected: int) -> None:
    assert floor.linear(4, pieces, rank, train=train, below=below) == expected


def test_pairs() -> None:
    assert floor.pairs([3, 1], causal=True) == 1 + 2 + 3 + 1
    assert floor.pairs([3, 1], causal=False) == 9 + 1


def test_a_prediction_by_hand() -> None:
    """One block, nothing adapted, one text of three tokens of which the last is read."""
    model = floor.Model(C, F, causal=True, blocks=[floor.Layers()], labels=2)
    keys_and_values, query_and_out = 2 * 3 * C * 2 * C, 2 * 2 * C * C
    attention = 2 * C * 3 * 2  # one row of scores over three keys, and their sum
    feed_forward = 2 * 2 * C * F
    head = 2 * C * 2
    expected = keys_and_values + query_and_out + attention + feed_forward + head
    assert floor.step(model, [3], train=False) == expected


def test_the_frozen_part_costs_nothing_in_an_epoch() -> None:
    blocks = [floor.Layers(), floor.Layers(), floor.Layers({floor.QKV: 1})]
    model = floor.Model(C, F, causal=True, blocks=blocks)
    alone = floor.Model(C, F, causal=True, blocks=blocks[2:])
    assert model.first_adapted == 2
    assert floor.step(model, [3, 5], start=2) == floor.step(alone, [3, 5])


def test_shared_beginnings_count_once() -> None:
    """Texts 1 2 3, 1 2 4, 5: a tree of five nodes, at depths 1, 2, 3, 3 and 1."""
    model = floor.Model(C, F, causal=True, blocks=[floor.Layers(), floor.Layers({floor.QKV: 1})])
    nodes, seen = 5, 1 + 2 + 3 + 3 + 1
    block = 2 * nodes * (C * 3 * C + C * C + 2 * C * F) + 4 * C * seen
    assert floor.prefix(model, [[1, 2, 3], [5], [1, 2, 4]]) == block


def test_a_bidirectional_prefix_shares_nothing() -> None:
    model = floor.Model(C, F, causal=False, blocks=[floor.Layers(), floor.Layers({floor.QKV: 1})])
    block = 2 * 6 * (C * 3 * C + C * C + 2 * C * F) + 4 * C * (9 + 9)
    assert floor.prefix(model, [[1, 2, 3], [1, 2, 4]]) == block


def counted(model: Any, ids: torch.Tensor) -> int:
    """PyTorch's count of a step."""
    mask = torch.ones_like(ids)
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, attention_mask=mask, labels=torch.zeros(len(ids), dtype=torch.long)).loss
        loss.backward()
    return int(counter.get_total_flops())


def adapted(model: Any, targets: list[str] | str, head: str) -> Any:
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=2,
        target_modules=targets,
        modules_to_save=[head],
        fan_in_fan_out=head == "score",
    )
    return peft.get_peft_model(model, config)


def test_bert_against_pytorchs_counter() -> None:
    """Texts of equal length through PEFT: nothing is padded. What PEFT computes and nobody reads is added by hand."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=C,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=F,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = adapted(BertForSequenceClassification(config), "all-linear", "classifier")
    B, n = 3, 7
    layers = floor.Layers(ALL, fused=False)
    whole = floor.Model(C, F, causal=False, blocks=[layers, layers], pooler=2, reads="all")
    assert counted(model, torch.randint(1, 50, (B, n))) == floor.step(whole, [n] * B)


V = 50


def gpt2_config(**more: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=V,
        n_embd=C,
        n_head=2,
        n_inner=F,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
        **more,
    )


def test_gpt2_against_pytorchs_counter() -> None:
    """As for BERT; in addition PEFT's computation takes the scores that the causal mask throws away, and heads of all
    tokens."""
    config = gpt2_config(n_layer=3, pad_token_id=0)
    model = adapted(GPT2ForSequenceClassification(config), ["h.1.attn.c_attn", "h.2.attn.c_attn"], "score")
    B, n = 3, 7
    layer = floor.Layers({floor.QKV: 2})
    whole = floor.Model(C, F, causal=True, blocks=[floor.Layers(), layer, layer], labels=0, reads="all")
    masked = B * (n * n - n * (n + 1) // 2) * 4 * C * (1 + 3 + 3)
    head = 2 * B * n * C * 2 * 3
    assert counted(model, torch.randint(1, 50, (B, n))) == floor.step(whole, [n] * B) + masked + head


def test_a_frozen_vocabulary_against_pytorchs_counter() -> None:
    """Every token but the first is foretold; transformers computes the head of the last one as well."""
    config = gpt2_config(n_layer=1)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(GPT2LMHeadModel(config), lora)
    B, n = 3, 7
    with FlopCounterMode(display=False) as counter:
        ids = torch.randint(1, V, (B, n))
        model(input_ids=ids, labels=ids).loss.backward()
    whole = floor.Model(C, F, causal=True, blocks=[floor.Layers({floor.QKV: 2})], labels=0, vocabulary=V)
    masked = B * (n * n - n * (n + 1) // 2) * 4 * C * 3
    every = B * n, floor.pairs([n] * B, causal=True)
    assert counter.get_total_flops() == floor.step(whole, [n] * B, labelled=every) + masked
    one = floor.step(whole, [n] * B, labelled=(B, B * n))
    assert floor.step(whole, [n] * B, labelled=every) - one > 4 * B * (n - 1) * C * V


def test_only_what_is_read_is_less() -> None:
    one = WORKLOADS["spam-gpt2"].floor_model
    whole = floor.Model(one.width, one.inner, one.causal, one.blocks, one.pooler, one.labels, reads="all")
    lengths = [12, 30, 44, 9]
    saved = 1 - floor.step(one, lengths) / floor.step(whole, lengths)
    assert 0.05 < saved < 1 / 12  # a part of one block of twelve


def test_workloads_adapt_what_the_recipes_say() -> None:
    sst2 = WORKLOADS["sst2-gpt2"]
    assert sst2.targets == ["transformer.h.10.attn.c_attn", "transformer.h.11.attn.c_attn"]
    assert sst2.floor_model.first_adapted == 10
    assert len(WORKLOADS["spam-gpt2"].targets) == 48
    assert WORKLOADS["spam-gpt2"].floor_model.first_adapted == 0
