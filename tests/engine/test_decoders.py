"""Llama and the families of its form in the engine's own blocks: against transformers padded, and against PEFT.

Loss and every gradient in fp32, at every length and read position, with checkpointing, a kept prefix and shared
beginnings. Tolerance 2e-6 against transformers as in `test_program.py`, 1e-5 against PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from engine.test_program import POOLINGS, check, loss, shake_
from reference.families import FAMILIES, LENGTHS, WINDOW, Family, family_of, texts_of
from reference.peft_oracle import KINDS as OF_PEFT
from reference.peft_oracle import compare_with_peft
from veneer.engine import Runner, pack
from veneer.engine.beginnings import beginnings_of
from veneer.engine.block_step import BlockStep
from veneer.engine.prefix import build_prefix, first_trained_block
from veneer.lora import LoraConfig, adapter_parameters, attach
from veneer.models.heads import head_modules, native_pooling

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
KINDS: dict[str, Family] = {
    **{name: FAMILIES[name] for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")},
    "Phi-3": family_of("Phi3", SIZES | {"num_attention_heads": 4}, "fused layers"),
    "Llama, scaled as Llama 3": family_of(
        "Llama", SIZES, "llama3, biases", rope_parameters=_LLAMA3, attention_bias=True, mlp_bias=True
    ),
    "Llama, yarn": family_of("Llama", SIZES, "yarn", rope_parameters=_YARN),
    "Qwen3, windows": family_of(
        "Qwen3",
        SIZES,
        "window in the second layer",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "one key-value head": family_of("Llama", SIZES | {"num_key_value_heads": 1}, "multi-query"),
}


def adapted(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model with a shaken adapter on every linear layer."""
    model = KINDS[kind].model(dtype=dtype)
    config: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "modules_to_save": head_modules(model, native_pooling(model)),
    }
    attach(model, LoraConfig(**(config | options)), seed=0)
    shake_(model)
    return model


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_and_read_position(kind: str, pooling: str, lengths: str) -> None:
    model = adapted(kind)
    assert Runner.of(model, mode="packed").program.ready()  # type: ignore[union-attr]
    check(model, LENGTHS[lengths], pooling)


@pytest.mark.parametrize("lengths", ["mixed", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(kind: str, lengths: str) -> None:
    check(adapted(kind), LENGTHS[lengths], "last", recompute=True)


@pytest.mark.parametrize(
    "kind", sorted(KINDS.keys() - set(OF_PEFT))
)  # those are in `test_engine_families.py`
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_has_the_loss_and_gradients_of_peft(kind: str) -> None:
    for lengths in ("mixed", "long"):
        value, gradients = compare_with_peft(KINDS[kind], LENGTHS[lengths])
        assert value <= 1e-5
        assert gradients <= 1e-5


def test_short_texts_run_as_one_node_of_the_graph_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = BlockStep.forward
    monkeypatch.setattr(BlockStep, "forward", lambda self, x: calls.append(1) or forward(self, x))
    runner = Runner.of(adapted("Qwen3"), mode="packed")
    calls.clear()
    loss(runner, LENGTHS["mixed"], "mean").backward()
    assert len(calls) == 2


def both(program: Any, batch: Any, reads: Any = None) -> list[Any]:
    """Gradients of the adapter with what is kept, and with what is computed again."""
    found = []
    for recompute in (False, True):
        states = program(batch, reads, recompute=recompute)
        weights = torch.linspace(-1.0, 1.0, states.numel(), dtype=states.dtype).view_as(states)
        found.append(torch.autograd.grad((states * weights).sum(), program_weights(program)))
    return found


def program_weights(program: Any) -> list[torch.Tensor]:
    """The adapters' factors."""
    groups = [g for b in program.blocks for g in (b.qkv, b.out, b.up, b.down)]
    return [factor for group in groups for factor in group.joined(torch.float32).factors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_computing_again_gives_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    model = adapted(kind)
    for name, p in model.named_parameters():
        if "lora" not in name and not p.requires_grad:
            p.data = p.data.to(dtype)
    program = Runner.of(model, mode="packed").program
    assert program is not None
    kept, again = both(program, pack(texts_of(LENGTHS["mixed"])))
    assert len(kept) > 10
    assert all(torch.equal(*pair) for pair in zip(kept, again, strict=True))


OPTIONS: dict[str, dict[str, Any]] = {
    "value alone": {"target_modules": ("v_proj",)},
    "key and gate": {"target_modules": ("k_proj", "gate_proj")},
    "out and down": {"target_modules": ("o_proj", "down_proj")},
    "biases of adapted layers": {"bias": "lora_only"},
    "every bias": {"bias": "all"},
    "second block": {"target_modules": ("q_proj", "up_proj"), "layers_to_transform": (1,)},
    "other ranks": {"rank_pattern": {"q_proj": 2, "up_proj": 3}, "alpha_pattern": {"k_proj": 3}},
    "norms": {"modules_to_save": ("input_layernorm", "post_attention_layernorm", "score")},
    "last norm": {"modules_to_save": ("norm", "score")},
}


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Gemma"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_adapter(option: str, kind: str) -> None:
    for pooling in ("last", "mean"):
        check(adapted(kind, **OPTIONS[option]), LENGTHS["mixed"], pooling)


class Texts:
    """Token ids as the engine takes them, many of which begin alike."""

    def __init__(self, n: int = 20) -> None:
        draw = np.random.default_rng(0)
        beginning = draw.integers(4, 50, 12)
        self.ids = [np.concatenate([beginning, draw.integers(4, 50, draw.integers(1, 9))]) for _ in range(n)]
        self.lengths = np.array([len(ids) for ids in self.ids])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.ids[index]


def _weighted(states: torch.Tensor) -> torch.Tensor:
    return (states * torch.arange(states.numel()).view_as(states).sin()).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_prefix_changes_no_state_and_no_gradient(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path))
    targets = ("qkv_proj", "o_proj") if kind == "Phi-3" else ("q_proj", "v_proj", "down_proj")
    model, texts = adapted(kind, target_modules=targets, layers_to_transform=(1,)), Texts()
    runner = Runner.of(model, mode="packed")
    assert runner.program is not None
    start = first_trained_block(runner.program, model)
    assert start == 1
    given = {"base_hash": "a", "dtype": torch.float32, "device": torch.device("cpu"), "causal": True}
    store = build_prefix(runner.program, texts, start, **given)
    assert store.shared > 0.3
    rows = [7, 3, 11, 3, 12]
    batch = pack([texts[i] for i in rows])
    below = store.below([rows[i] for i in batch.order], torch.device("cpu"))
    weights = [p for name, p in adapter_parameters(model) if "lora" in name]
    results = []
    for way in (below, None):
        states = runner.hidden_states(batch, batch.layout.last, way)
        results.append([states, *torch.autograd.grad(_weighted(states), weights)])
    for with_prefix, whole in zip(*results, strict=True):
        assert_close(with_prefix, whole, rtol=1e-4, atol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("reads", ["all", "some", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_beginnings_change_no_state_and_no_gradient(kind: str, reads: str) -> None:
    model = adapted(kind)
    weights = [p for name, p in adapter_parameters(model) if "lora" in name]
    program = Runner.of(model, mode="packed").program
    assert program is not None
    texts = Texts(8)
    batch = pack([texts[i] for i in range(8)])
    places = {"all": None, "some": torch.arange(3, batch.tokens, 4), "last": batch.layout.last}[reads]
    shared = beginnings_of(batch)
    assert shared is not None
    found = []
    for one in (None, shared):
        states = program(batch, places, shared=one)
        found.append([states, *torch.autograd.grad(_weighted(states), weights)])
    for plain, with_nodes in zip(*found, strict=True):
        assert_close(with_nodes, plain, rtol=1e-4, atol=1e-4)  # sums over texts in another order
