"""Reading GPT-2's published weights: every tensor accounted for, every fault named at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from veneer.errors import BaseError
from veneer.models.gpt import GPTConfig
from veneer.models.gpt_weights import gpt_from_state, load_gpt

SMALL = GPTConfig(emb_dim=32, n_heads=4, n_layers=2, context_length=16, vocab_size=50)
THEIR_CONFIG = GPT2Config(
    vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
)


@pytest.fixture
def theirs() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(THEIR_CONFIG).eval()


@pytest.fixture
def state(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in theirs.transformer.state_dict().items()}


def test_a_folder_of_transformers_loads(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    model = load_gpt(tmp_path)
    assert model.config == SMALL
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.out_head.weight is model.tok_emb.weight
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        # fp32 sums in another order
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_keys_without_prefix_and_the_old_buffers_load(state: dict[str, Tensor], tmp_path: Path) -> None:
    """The hub's gpt2 file: no `transformer.` prefix, the causal mask stored in every block."""
    for i in range(2):
        state[f"h.{i}.attn.bias"] = torch.ones(16, 16).tril().view(1, 1, 16, 16)
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    model = load_gpt(tmp_path / "model.safetensors", config=SMALL)
    assert torch.equal(model.tok_emb.weight, state["wte.weight"])


def test_the_fused_weights_are_split_and_transposed(state: dict[str, Tensor]) -> None:
    model = gpt_from_state(state, config=SMALL)
    att = model.trf_blocks[1].att
    q, k, v = state["h.1.attn.c_attn.weight"].split(32, dim=1)  # (in, out) each
    x = torch.randn(5, 32)
    for layer, weight in ((att.W_query, q), (att.W_key, k), (att.W_value, v)):
        assert layer.weight.is_contiguous()
        assert torch.equal(layer.weight, weight.t())
        torch.testing.assert_close(layer(x), x @ weight + layer.bias, atol=1e-6, rtol=1e-6)  # fp32 rounding


def test_the_model_shares_no_memory_with_the_state(state: dict[str, Tensor]) -> None:
    model = gpt_from_state(state, config=SMALL)
    before = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_dtype_and_head_are_chosen_at_load(state: dict[str, Tensor]) -> None:
    model = gpt_from_state(state, config=SMALL, num_labels=3, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.out_head.weight.shape == (3, 32)
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 3)


def test_every_fault_is_listed_at_once(state: dict[str, Tensor]) -> None:
    del state["h.0.ln_1.bias"], state["wpe.weight"]
    state["h.1.mlp.c_fc.weight"] = state["h.1.mlp.c_fc.weight"].t().contiguous()
    state["h.0.attn.c_attn.weight"][3, 3] = torch.nan
    state["score.weight"] = torch.zeros(2, 32)
    state["lm_head.weight"] = state["wte.weight"] + 1
    with pytest.raises(BaseError) as caught:
        gpt_from_state(state, config=SMALL)
    listed = str(caught.value).splitlines()[1:]
    assert listed == [
        "  - lm_head.weight differs from wte.weight; GPT-2's output head is its token embedding",
        "  - h.0.attn.c_attn.weight holds values that are not finite",
        "  - h.1.mlp.c_fc.weight has shape (128, 32); expected (32, 128)",
        "  - h.0.ln_1.bias is missing",
        "  - wpe.weight is missing",
        "  - score.weight (2, 32) is not a tensor of GPT-2",
    ]


def test_a_tensor_stored_under_both_names_is_an_error(state: dict[str, Tensor]) -> None:
    state["transformer.wte.weight"] = state["wte.weight"]
    with pytest.raises(BaseError, match="twice"):
        gpt_from_state(state, config=SMALL)


def test_an_unknown_size_asks_for_its_config(state: dict[str, Tensor]) -> None:
    with pytest.raises(BaseError, match=r"2 blocks of width 32.*Give `config`"):
        gpt_from_state(state)


def test_options_that_are_not_computed_are_refused_by_name(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"activation_function": "relu", "layer_norm_epsilon": 1e-6}))
    with pytest.raises(BaseError, match=r"(?s)activation_function is 'relu'.*layer_norm_epsilon is 1e-06"):
        load_gpt(tmp_path)
    file.write_text(json.dumps(stored | {"n_inner": 48}))
    with pytest.raises(BaseError, match="n_inner is 48"):
        load_gpt(tmp_path)
    file.write_text(json.dumps(stored | {"model_type": "bert"}))
    with pytest.raises(BaseError, match="does not describe a GPT-2"):
        load_gpt(tmp_path)


def test_what_is_no_weights_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"No model\.safetensors"):
        load_gpt(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(BaseError, match="not a readable safetensors file"):
        load_gpt(tmp_path)


def test_the_headless_model_of_transformers_loads_too() -> None:
    torch.manual_seed(0)
    theirs = GPT2Model(THEIR_CONFIG).eval()
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        hidden = gpt_from_state(theirs.state_dict(), config=SMALL).hidden_states(ids)
        torch.testing.assert_close(hidden, theirs(ids).last_hidden_state, atol=1e-4, rtol=0)  # fp32 sums
