"""adapter_config.json and the tensors: what is refused, what is written, and every fault at once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import bert, distilbert, gpt2, llama, logits, shaken_
from torch import Tensor, nn
from torch.testing import assert_close

from veneer.errors import AdapterError, ConfigError, UnsupportedOptionError
from veneer.lora import (
    LoraConfig,
    adapter_parameters,
    adapter_state_dict,
    attach,
    load_adapter_state_dict,
    lora_config_from_peft,
    peft_config_dict,
)

QUERY = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])


def peft_file(**fields: Any) -> dict[str, Any]:
    """What PEFT would write for the defaults, with some fields set by hand."""
    written = peft.LoraConfig(target_modules=["query"], base_model_name_or_path="base").to_dict()
    written["target_modules"] = ["query"]
    return json.loads(json.dumps(written | fields))


UNSUPPORTED: dict[str, Any] = {
    "lora_bias": True,
    "use_qalora": True,
    "megatron_config": {"a": 1},
    "trainable_token_indices": [1, 2],
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"cache_file": None},
    "lora_ga_config": {"direction": "ArB2r"},
    "velora_config": {"num_groups": 4},
    "alora_invocation_tokens": [5],
    "monteclora_config": {"num_samples": 8},
    "layer_replication": [[0, 4], [2, 5]],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 0.1},
    "ensure_weight_tying": True,
    "some_new_option": "on",
}


def test_every_key_of_peft_is_read_or_refused() -> None:
    """A key that a new version of PEFT brings fails here until someone has thought about it."""
    neither = set(peft_file()) - set(UNSUPPORTED) - set(LoraConfig.model_fields)
    assert neither == {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size",
    }  # fmt: skip
    assert lora_config_from_peft(peft_file()) == LoraConfig(target_modules=["query"])


@pytest.mark.parametrize("option", UNSUPPORTED)
def test_an_option_that_is_not_computed_is_refused_by_name(option: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=f"does not compute.*\n  - {option}="):
        lora_config_from_peft(peft_file(**{option: UNSUPPORTED[option]}))


@pytest.mark.parametrize(
    ("init", "says"),
    [
        ("olora", "changed before training.*path_initial_model"),
        ("corda", "changed before training"),
        ("loftq", "changed before training"),
        ("lora_ga", "changed before training"),
        ("pissa_niter_4", "randomised PiSSA"),
        ("eva", "ordinary LoRA: write true"),
        ("orthogonal", "ordinary LoRA: write true"),
        ("mica", "does not know"),
    ],
)
def test_an_initialisation_that_may_have_changed_the_base_is_refused(init: str, says: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=f"init_lora_weights='{init}'.*{says}"):
        lora_config_from_peft(peft_file(init_lora_weights=init))


def test_all_refusals_are_told_at_once() -> None:
    with pytest.raises(UnsupportedOptionError) as caught:
        lora_config_from_peft(
            peft_file(use_qalora=True, lora_bias=True, init_lora_weights="olora", peft_type="IA3")
        )
    names = ["init_lora_weights", "lora_bias", "peft_type", "use_qalora"]
    assert sorted(fault.split("=")[0] for fault in caught.value.faults) == names


def test_wrong_values_of_a_file_are_an_error_of_the_adapter() -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json: LoraConfig: r='8'"):
        lora_config_from_peft(peft_file(r="8"))
    with pytest.raises(AdapterError, match="does not say target_modules"):
        lora_config_from_peft(peft_file(target_modules=None))


def test_a_missing_key_has_pefts_default() -> None:
    assert lora_config_from_peft({"peft_type": "LORA", "target_modules": ["query"]}) == LoraConfig(
        target_modules=["query"]
    )


def test_names_that_peft_adds_twice() -> None:
    config = lora_config_from_peft(peft_file(modules_to_save=["score", "classifier", "score"]))
    assert config.modules_to_save == ("score", "classifier")


def written(model: nn.Module, config: LoraConfig, task_type: str | None = None) -> dict[str, Any]:
    return peft_config_dict(config, model, base_model_name_or_path="base", task_type=task_type)


def test_only_keys_that_old_versions_know_are_written() -> None:
    """The keys of PEFT 0.10 (March 2024); later versions have defaults for the others."""
    model = bert()
    attach(model, QUERY)
    assert set(written(model, QUERY)) == {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r",
        "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora",
    }  # fmt: skip
    assert set(written(model, QUERY)) <= {field.name for field in dataclasses.fields(peft.LoraConfig)}


@pytest.mark.parametrize(
    ("make", "fields", "names"),
    [
        (gpt2, {"target_modules": ["c_attn"]}, ["c_attn"]),
        (gpt2, {"target_modules": ["c_attn"], "layers_to_transform": [1, 2]}, ["1.attn.c_attn", "2.attn.c_attn"]),
        (gpt2, {"target_modules": ["attn.c_proj"]}, ["attn.c_proj"]),
        (
            bert,
            {"target_modules": ["dense"], "exclude_modules": ["pooler.dense"]},
            ["intermediate.dense", "output.dense"],
        ),
        (bert, {"target_modules": r".*(query|value)"}, ["query", "value"]),
        (
            llama,
            {"target_modules": "all-linear"},
            ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        ),
    ],
    ids=["suffix", "blocks", "two-parts", "exclude", "regex", "all-linear"],
)  # fmt: skip
def test_target_modules_is_the_shortest_list(make: Any, fields: dict[str, Any], names: list[str]) -> None:
    model, config = make(), LoraConfig(**fields)
    attach(model, config)
    assert written(model, config)["target_modules"] == names


class Nested(nn.Module):
    """`dense` is the end of `inner.dense`: no list of suffixes selects the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2)
        self.inner = nn.ModuleDict({"dense": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["dense"](self.dense(x))


def test_an_expression_where_no_list_does() -> None:
    model, config = Nested(), LoraConfig(target_modules="dense")
    attach(model, config)
    assert written(model, config)["target_modules"] == "dense"
    theirs = peft.get_peft_model(Nested(), peft.LoraConfig(target_modules="dense"))
    assert theirs.base_model.targeted_module_names == ["dense"]


def test_slices_beside_ordinary_layers_have_patterns() -> None:
    model = gpt2()
    config = LoraConfig(target_modules=["c_attn", "c_proj"], qkv_slices=["q", "v"], r=3, lora_alpha=6)
    attach(model, config)
    found = written(model, config)
    assert (found["r"], found["lora_alpha"]) == (3, 6)
    assert found["rank_pattern"] == {f"transformer.h.{i}.attn.c_attn": 6 for i in range(3)}
    assert found["alpha_pattern"] == {f"transformer.h.{i}.attn.c_attn": 12 for i in range(3)}
    assert LoraConfig.from_dict(config.to_dict()).qkv_slices == ("q", "v")


def test_what_peft_could_not_read_is_not_written() -> None:
    model = bert()
    config = LoraConfig(target_modules=["query", "classifier"])
    attach(model, config)
    with pytest.raises(ConfigError, match=r"task_type='SEQ_CLS'.*the whole of classifier.*modules_to_save"):
        written(model, config, "SEQ_CLS")
    with pytest.raises(ConfigError, match=r"task_type='SEQ_CLASS'.*'SEQ_CLS'"):
        written(model, config, "SEQ_CLASS")
    with pytest.raises(ConfigError, match="attached with another configuration"):
        written(model, QUERY)
    assert written(model, config)["task_type"] is None


def test_the_head_of_distilbert_is_whole() -> None:
    model = distilbert()
    config = LoraConfig(target_modules="all-linear", modules_to_save=["classifier"])
    attach(model, config)
    assert written(model, config, "SEQ_CLS")["modules_to_save"] == ["classifier"]
    assert "base_model.model.pre_classifier.weight" in adapter_state_dict(model)


def test_all_faults_of_the_tensors_are_told_at_once() -> None:
    model = bert()
    attach(model, QUERY, seed=0)
    before, answer = adapter_state_dict(model), logits(model)
    prefix = "base_model.model.bert.encoder.layer"
    state = dict(before)
    del state[f"{prefix}.0.attention.self.query.lora_A.weight"]
    state[f"{prefix}.0.attention.self.querry.lora_A.weight"] = torch.zeros(8, 16)
    state[f"{prefix}.1.attention.self.query.lora_A.weight"] = torch.zeros(8, 17)
    state[f"{prefix}.1.attention.self.query.lora_B.weight"] = torch.full((16, 8), float("nan"))
    state[f"{prefix}.2.attention.self.query.lora_A.weight"] = torch.zeros(8, 16, dtype=torch.int64)
    state["base_model.model.classifier.bias"] = torch.ones(3)
    with pytest.raises(AdapterError) as caught:
        load_adapter_state_dict(model, state)
    assert sorted(caught.value.faults) == [
        f"{prefix}.1.attention.self.query.lora_A.weight: shape (8, 17), expected (8, 16)",
        f"{prefix}.1.attention.self.query.lora_B.weight: 128 of its 128 values are not finite",
        f"{prefix}.2.attention.self.query.lora_A.weight: dtype torch.int64, expected a floating-point one",
        f"missing: {prefix}.0.attention.self.query.lora_A.weight (8, 16)",
        f"unexpected: {prefix}.0.attention.self.querry.lora_A.weight (8, 16). "
        f"Did you mean '{prefix}.0.attention.self.query.lora_A.weight'?",
    ]
    assert "5 faults" in str(caught.value)
    assert_close(logits(model), answer, rtol=0, atol=0)  # nothing was loaded, the good ones neither
    for key, tensor in adapter_state_dict(model).items():
        assert_close(tensor, before[key], rtol=0, atol=0)


def test_a_full_matrix_is_not_read_as_slices() -> None:
    fused, sliced = gpt2(), gpt2()
    attach(fused, LoraConfig(target_modules=["c_attn"], r=6), seed=0)
    attach(sliced, LoraConfig(target_modules=["c_attn"], r=3, qkv_slices=["q", "v"]), seed=0)
    shaken_([parameter for _, parameter in adapter_parameters(fused)])
    with pytest.raises(AdapterError, match="not zero outside the blocks of the slices"):
        load_adapter_state_dict(sliced, adapter_state_dict(fused))


def test_a_randomised_pissa_of_rank_r_is_refused() -> None:
    model = bert()
    attach(model, LoraConfig(target_modules=["query"], r=2, init_lora_weights="pissa_niter_2"), seed=0)
    half = {
        key: tensor[:2] if "lora_A" in key else tensor[:, :2]
        for key, tensor in adapter_state_dict(model).items()
    }
    with pytest.raises(AdapterError, match="the start of a randomised PiSSA unknown"):
        load_adapter_state_dict(model, half)


def test_the_embedding_that_peft_stores_beside_an_adapter() -> None:
    """`embed_tokens.base_layer.weight` is accepted when it is the base's, and only then."""
    model = llama()
    attach(model, LoraConfig(target_modules=["embed_tokens"]), seed=0)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    weight = model.model.embed_tokens.weight.detach()
    state = adapter_state_dict(model)
    load_adapter_state_dict(model, state | {key: weight.clone()})
    with pytest.raises(AdapterError, match="another embedding than the base's"):
        load_adapter_state_dict(model, state | {key: weight + 1})


@pytest.mark.parametrize(("family", "words"), [(gpt2, "c_attn"), (llama, "embed_tokens")])
def test_state_has_memory_of_its_own(family: Any, words: str) -> None:
    model = family()
    attach(model, LoraConfig(target_modules=[words]), seed=0)
    state = adapter_state_dict(model)
    assert list(state) == sorted(state)
    for tensor in state.values():
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        tensor.fill_(7.0)
    assert all(not bool((parameter == 7.0).any()) for _, parameter in adapter_parameters(model))


forms = st.fixed_dictionaries(
    {
        "target_modules": st.sampled_from([["c_attn"], ["c_attn", "wte"], ["c_proj", "c_fc", "c_attn"]]),
        "r": st.integers(1, 5),
        "lora_alpha": st.integers(1, 20),
        "use_rslora": st.booleans(),
        "bias": st.sampled_from(["none", "lora_only", "all"]),
        "modules_to_save": st.sampled_from([None, ["score"]]),
    }
)
extras = st.sampled_from(
    [
        {},
        {"qkv_slices": ["q"]},
        {"qkv_slices": ["k", "v"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": False},
    ]
)


@settings(max_examples=25, deadline=None)
@given(forms, extras)
def test_save_then_load_is_nothing(form: dict[str, Any], extra: dict[str, Any]) -> None:
    """Into the same configuration: the same bits. As the ordinary adapter that PEFT's file says: the same logits."""
    config = LoraConfig(**form, **extra)
    model = gpt2()
    attach(model, config, seed=0)
    shaken_([parameter for _, parameter in adapter_parameters(model)])
    answer, state = logits(model), adapter_state_dict(model)
    again = gpt2()
    attach(again, config, name="other-name", seed=1)
    load_adapter_state_dict(again, state, "other-name")
    assert_close(logits(again), answer, rtol=0, atol=0)
    for key, tensor in adapter_state_dict(again, "other-name").items():
        assert_close(tensor, state[key], rtol=0, atol=0)
    ordinary = gpt2()
    attach(ordinary, lora_config_from_peft(written(model, config)))
    load_adapter_state_dict(ordinary, state)
    assert_close(logits(ordinary), answer, rtol=1e-5, atol=1e-5)
