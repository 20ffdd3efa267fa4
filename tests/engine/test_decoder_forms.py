"""What is not Llama's form, as it was written, runs through transformers' own forward: angles, modules, hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.test_decoders import SIZES
from reference.families import FAMILIES, family_of, texts_of
from veneer.engine import Runner, pack
from veneer.engine.allocation import memory_bytes
from veneer.engine.families import _SHARE_OF_COPIES
from veneer.engine.frozen import has_blocks

ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 2.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope", ROPES)
def test_angles_that_depend_on_the_longest_text_are_left_to_transformers(rope: str) -> None:
    model = family_of("Llama", SIZES, "", rope_parameters=ROPES[rope]).model()
    assert Runner.of(model).program is None


class OtherNorm(torch.nn.Module):
    """A norm that nobody here knows."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = like.weight, like.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Only scaled."""
        return x * self.weight


def _other_norm(model: Any) -> None:
    model.model.layers[1].input_layernorm = OtherNorm(model.model.layers[1].input_layernorm)


def _other_forward(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    plain = attention.forward
    attention.forward = lambda *args, **named: plain(*args, **named)


def _other_layer(model: Any) -> None:
    model.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    model.model.layers[0].extra = torch.nn.Linear(2, 2)


def _other_part(model: Any) -> None:
    model.model.layers[0].self_attn.extra = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("change", [_other_norm, _other_forward, _other_layer, _other_part])
def test_a_module_that_is_not_as_written_is_left_to_transformers(change: Any) -> None:
    model = FAMILIES["Llama"].model()
    assert Runner.of(model).program is not None
    change(model)
    runner = Runner.of(model)
    assert runner.mode == "packed"
    assert runner.program is None


@pytest.mark.parametrize(
    "where", ["layers.0", "layers.1.self_attn", "layers.0.mlp", "layers.1.self_attn.q_norm"]
)
def test_a_hook_on_a_part_of_a_block_is_called(where: str) -> None:
    model = FAMILIES["Qwen3"].model().requires_grad_(False)
    runner = Runner.of(model)
    batch = pack(texts_of((5, 3)))
    calls: list[int] = []
    model.model.get_submodule(where).register_forward_hook(lambda *_: calls.append(1))
    runner.hidden_states(batch)
    assert calls


@pytest.mark.parametrize(("share", "kept"), [(0.0, ""), (2.0, "bf16"), (4.0, "fp32 bf16")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_weights_are_kept_where_there_is_room(
    share: float, kept: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for two copies in bf16, and for two in fp32, where memory is so many times the fp32 weights."""
    model = FAMILIES["Llama"].model(dtype=dtype).requires_grad_(False)
    blocks = [p for name, p in model.model.layers.named_parameters() if "norm" not in name]
    memory = int(share / _SHARE_OF_COPIES * 2 * sum(p.numel() for p in blocks))
    monkeypatch.setattr("veneer.engine.families.memory_bytes", lambda: memory)
    runner = Runner.of(model)
    assert runner.program is not None
    block = runner.program.blocks[0]
    dtypes = {{"fp32": torch.float32, "bf16": torch.bfloat16}[name] for name in kept.split()}
    assert [group.copies for group in (block.qkv, block.out, block.up, block.down)] == [dtypes] * 4
    states = runner.hidden_states(pack(texts_of((5, 3))))
    frozen = block.up.joined(states.dtype).frozen
    assert frozen._blocked == (dtype in dtypes and dtype is torch.bfloat16 and has_blocks())  # type: ignore[union-attr]
    assert dtype in dtypes or frozen.compiled() is None  # type: ignore[union-attr]
    assert bool(states.isfinite().all())


def test_this_machine_says_how_much_memory_it_has() -> None:
    assert 2**28 < memory_bytes() <= 2**63
