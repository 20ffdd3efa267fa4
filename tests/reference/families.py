"""Small random models of each family that the packed engine is held against, and the comparison itself.

The oracle is transformers: its own `...ForSequenceClassification`, padded, with eager attention. Everything is drawn,
biases and norms too, so that no parameter is a neutral element.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from veneer.engine import Runner, pack
from veneer.models.heads import native_pooling
from veneer.tasks.classification import Classification

VOCABULARY, LABELS, POSITIONS, WINDOW = 60, 3, 340, 4
PAD = 0  # never drawn as a token

LENGTHS: dict[str, tuple[int, ...]] = {
    "mixed": (5, 1, 17, 9, 9, 30, 2),
    "equal": (11, 11, 11),
    "one": (1,),
    "long": (300, 3, 258),  # longer than a block of attention
}

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_GROUPED = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
_COMMON = {"vocab_size": VOCABULARY, "num_labels": LABELS, "pad_token_id": PAD}


@dataclass(frozen=True)
class Family:
    """One family: its class, its configuration, and in words what is special about it."""

    kind: str
    config: str
    options: dict[str, Any]
    special: str

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """A random model in eval mode."""
        config = getattr(transformers, self.config)(**self.options)
        config._attn_implementation = "eager"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = getattr(transformers, self.kind)(config)
            for parameter in model.parameters():
                parameter.data.normal_(0.0, 0.2)
        return model.to(dtype).eval()


def family_of(name: str, sizes: dict[str, Any], special: str, **more: Any) -> Family:
    """`name` as transformers spells it, with a head of three labels."""
    options = _COMMON | sizes | {"max_position_embeddings": POSITIONS} | more
    return Family(f"{name}ForSequenceClassification", f"{name}Config", options, special)


FAMILIES: dict[str, Family] = {
    "GPT-2": family_of(
        "GPT2",
        {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        "Conv1D, learned positions, causal",
    ),
    "BERT": family_of("Bert", _SIZES, "bidirectional, pooler"),
    "RoBERTa": family_of(
        "Roberta",
        _SIZES,
        "positions from pad + 1",
        pad_token_id=1,
        max_position_embeddings=POSITIONS + 2,
        type_vocab_size=1,
    ),
    "DistilBERT": family_of(
        "DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, "two-layer head"
    ),
    "Llama": family_of("Llama", _GROUPED, "rotary, grouped queries"),
    "Qwen2": family_of("Qwen2", {**_GROUPED}, "rotary, biases on q, k, v"),
    "Qwen3": family_of("Qwen3", _GROUPED, "norms on q and k"),
    "Mistral": family_of("Mistral", _GROUPED, "sliding window of 4", sliding_window=WINDOW),
    "Gemma": family_of("Gemma", _GROUPED, "scaled embeddings, norms around 1"),
    "Gemma 2": family_of(
        "Gemma2",
        _GROUPED,
        "softcap, window of 4 in every other layer",
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=4,
    ),
    "GPT-NeoX": family_of("GPTNeoX", _SIZES, "parallel residual, part of the head rotary"),
    "ModernBERT": family_of(
        "ModernBert",
        _SIZES,
        "local attention of 4 in two of three layers",
        local_attention=WINDOW,
        num_hidden_layers=4,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
}

PADDED_ONLY: dict[str, Family] = {
    "DeBERTa-v2": family_of(
        "DebertaV2", _SIZES, "relative positions inside the attention", type_vocab_size=0
    ),
}

DECODERS = ("GPT-2", "Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma 2", "GPT-NeoX")


@dataclass(frozen=True)
class Result:
    """A loss and the gradient of each parameter that has one."""

    loss: float
    gradients: dict[str, Tensor]


def texts_of(lengths: Sequence[int], seed: int = 1) -> list[np.ndarray]:
    """Random token ids, none of them special."""
    draw = np.random.default_rng(seed)
    return [draw.integers(4, VOCABULARY, n) for n in lengths]


def targets_of(lengths: Sequence[int]) -> Tensor:
    """A label for each text."""
    return torch.tensor([i % LABELS for i in range(len(lengths))])


def padded_oracle(model: Any, texts: Sequence[np.ndarray], targets: Tensor) -> Result:
    """The loss and gradients as transformers computes them: padded on the right, its own head and loss."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), int(model.config.pad_token_id))
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
        mask[row, : len(text)] = 1
    return result_of(model, lambda: model(input_ids=ids, attention_mask=mask, labels=targets).loss)


def ours(runner: Runner, texts: Sequence[np.ndarray], targets: Tensor) -> Result:
    """The same through the engine and our task."""
    model = runner.model
    task = Classification(tuple("abc"[:LABELS]), native_pooling(model))
    batch = pack(texts)

    def loss() -> Tensor:
        states = runner.hidden_states(batch, task.reads(batch.layout))
        outputs = task.outputs(model, states, batch.layout)
        return task.loss(outputs, targets[list(batch.order)])

    return result_of(model, loss)


def differences(found: Result, expected: Result) -> tuple[float, float]:
    """Of the loss, absolute; of the gradients, the largest difference over the largest gradient.

    Absolute against the largest gradient of the model, because some gradients are zero but for rounding (softmax does
    not see the bias of a key).
    """
    assert found.gradients.keys() == expected.gradients.keys()
    assert len(expected.gradients) > 2
    largest = max(float(g.abs().max()) for g in expected.gradients.values())
    off = max(float((found.gradients[n] - g).abs().max()) for n, g in expected.gradients.items())
    return abs(found.loss - expected.loss), off / largest


def result_of(model: nn.Module, loss: Callable[[], Tensor]) -> Result:
    """A loss and its gradients, and the model without gradients again."""
    model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return Result(float(value.detach()), gradients)


def compare(family: Family, lengths: Sequence[int]) -> tuple[float, float]:
    """`differences` of the packed engine and transformers for one family and one set of lengths, in fp32."""
    model = family.model()
    texts, targets = texts_of(lengths), targets_of(lengths)
    expected = padded_oracle(model, texts, targets)
    runner = Runner.of(copy.deepcopy(model), mode="packed")
    return differences(ours(runner, texts, targets), expected)
