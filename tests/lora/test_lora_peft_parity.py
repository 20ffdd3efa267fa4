"""PEFT itself as the oracle: gradients, adapters of ours in PEFT, adapters of PEFT in ours; for every option."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, VOCABULARY, logits, shaken_, token_ids
from torch import Tensor, nn
from torch.testing import assert_close

from veneer.lora import (
    LoraConfig,
    adapter_parameters,
    adapter_state_dict,
    attach,
    load_adapter_state_dict,
    lora_config_from_peft,
    peft_config_dict,
)

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # fp32 logits of size one; PEFT sums in another order

QKV = {
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "llama": ["q_proj", "v_proj"],
    "distilbert": ["q_lin", "v_lin"],
}
OUT = {"gpt2": "c_proj", "bert": "attention.output.dense", "llama": "o_proj", "distilbert": "out_lin"}
WORDS = {"gpt2": "wte", "bert": "word_embeddings", "llama": "embed_tokens", "distilbert": "word_embeddings"}
HEAD = {
    "gpt2": ["score"],
    "bert": ["classifier"],
    "llama": ["lm_head"],
    "distilbert": ["pre_classifier", "classifier"],
}
BLOCKS = {"gpt2": "h", "bert": "layer", "llama": "layers", "distilbert": "layer"}
FIRST = {
    "gpt2": "h.0.attn.c_proj",
    "bert": "layer.0.attention.output.dense",
    "llama": "layers.0.self_attn.o_proj",
    "distilbert": "0.attention.out_lin",
}


def options(family: str) -> dict[str, dict[str, Any]]:
    """Every option of LoraConfig that PEFT has, by name."""
    qkv, out, words, head = QKV[family], OUT[family], WORDS[family], HEAD[family]
    base = {"target_modules": qkv}
    return {
        "defaults": base,
        "r": base | {"r": 3},
        "lora_alpha": base | {"lora_alpha": 32},
        "use_rslora": base | {"use_rslora": True, "r": 5},
        "lora_dropout": base | {"lora_dropout": 0.3},
        "use_dora": {"target_modules": [*qkv, out], "use_dora": True, "modules_to_save": head},
        "use_dora-embedding": {"target_modules": [*qkv, words], "use_dora": True},
        "use_dora-rslora-rank_pattern": {
            "target_modules": [*qkv, out],
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {out: 2},
            "bias": "lora_only",
            "init_lora_weights": False,
        },
        "target_modules-two": {"target_modules": [*qkv, out]},
        "target_modules-regex": {"target_modules": rf".*\.({'|'.join(qkv)})"},
        "target_modules-regex-blocks": {"target_modules": rf".*\.[12]\..*\.({'|'.join(qkv)})"},
        "all-linear": {"target_modules": "all-linear", "modules_to_save": head},
        "embedding": {"target_modules": [*qkv, words]},
        "exclude_modules": {"target_modules": [*qkv, out], "exclude_modules": [FIRST[family]]},
        "exclude_modules-regex": {"target_modules": [*qkv, out], "exclude_modules": rf".*\.1\..*{out}"},
        "layers_to_transform": base | {"layers_to_transform": 1},
        "layers_to_transform-list": base | {"layers_to_transform": [0, 1]},
        "layers_pattern": base | {"layers_to_transform": [1], "layers_pattern": BLOCKS[family]},
        "rank_pattern": {"target_modules": [*qkv, out], "rank_pattern": {out: 2}},
        "alpha_pattern": {"target_modules": [*qkv, out], "alpha_pattern": {rf"1\..*{out}": 3}},
        "bias-lora_only": base | {"bias": "lora_only"},
        "bias-all": base | {"bias": "all"},
        "bias-all-modules_to_save": base | {"bias": "all", "modules_to_save": head},
        "modules_to_save": base | {"modules_to_save": head},
        "init-gaussian": base | {"init_lora_weights": "gaussian"},
        "init-false": base | {"init_lora_weights": False},
        "init-pissa": base | {"init_lora_weights": "pissa", "r": 2},
        "init-pissa-rslora": base | {"init_lora_weights": "pissa", "r": 2, "use_rslora": True},
        "init-pissa-rank_pattern": {
            "target_modules": [*qkv, out],
            "init_lora_weights": "pissa",
            "r": 2,
            "rank_pattern": {out: 3},
        },
    }


NAMES = list(options("gpt2"))
FEW = (
    "defaults", "all-linear", "embedding", "bias-all", "modules_to_save", "init-pissa", "use_dora",
    "use_dora-embedding",
)  # fmt: skip
CASES = [
    pytest.param(family, name, id=f"{family}-{name}")
    for family in FAMILIES
    for name in (NAMES if family in ("gpt2", "bert") else FEW)
]
TASK = {"gpt2": "SEQ_CLS", "bert": "SEQ_CLS", "llama": "CAUSAL_LM", "distilbert": "SEQ_CLS"}


def peft_model(family: str, given: dict[str, Any], **more: Any) -> peft.PeftModel:
    base = FAMILIES[family]()
    torch.manual_seed(5)  # PEFT draws its factors from the common generator
    return peft.get_peft_model(base, peft.LoraConfig(**copy.deepcopy(given), **more)).eval()


def peft_key(parameter_name: str) -> str:
    plain = parameter_name.replace(".default", "").replace(".modules_to_save", "")
    return plain.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def our_key(model: nn.Module, parameter_name: str) -> str:
    """The name of a trained parameter in the stored adapter."""
    owner, _, last = parameter_name.rpartition(".")
    owner = "base_model.model." + owner
    if last in ("lora_A", "lora_B"):
        embedding = any(parameter_name.startswith(word) for word in _embeddings(model))
        return f"{owner}.lora_embedding_{last[-1]}" if embedding else f"{owner}.{last}.weight"
    if last == "lora_magnitude_vector":
        return f"{owner}.{last}"
    if last == "bias" and f"{owner}.lora_A.weight" in adapter_state_dict(model):
        return f"{owner}.base_layer.bias"
    return f"{owner}.{last}"


def _embeddings(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ == "LoraEmbedding"]


def test_the_matrix_covers_every_option() -> None:
    """Each field of LoraConfig that PEFT has stands in the matrix."""
    tried = {key for family in FAMILIES for given in options(family).values() for key in given}
    assert tried == set(LoraConfig.model_fields) - {"qkv_slices"}
    assert len(CASES) == 2 * len(NAMES) + 2 * len(FEW) == 74


@pytest.mark.parametrize(("family", "option"), CASES)
def test_gradients_are_pefts(family: str, option: str) -> None:
    given = options(family)[option]
    theirs = peft_model(family, given)
    ours = FAMILIES[family]()
    config = LoraConfig(**given)
    attach(ours, config, seed=1)
    trained = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    shaken_(list(trained.values()))
    values = {peft_key(name): parameter for name, parameter in trained.items()}
    mine = {our_key(ours, name): parameter for name, parameter in adapter_parameters(ours)}
    assert mine.keys() == values.keys()
    with torch.no_grad():
        for key, parameter in mine.items():
            parameter.copy_(values[key])
    wanted, got = logits(theirs), logits(ours)
    assert_close(got, wanted, **TOLERANCE)
    wanted.square().mean().backward()
    got.square().mean().backward()
    for key, parameter in mine.items():
        assert_close(
            parameter.grad, values[key].grad, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize(("family", "option"), CASES)
def test_ours_is_read_by_peft(family: str, option: str, tmp_path: Path) -> None:
    ours = FAMILIES[family]()
    config = LoraConfig(**options(family)[option])
    attach(ours, config, seed=1)
    untouched = logits(FAMILIES[family]())
    shaken_([parameter for _, parameter in adapter_parameters(ours)])
    assert not torch.allclose(logits(ours), untouched, atol=1e-3)
    task = TASK[family] if config.modules_to_save else None
    written = peft_config_dict(config, ours, base_model_name_or_path=None, task_type=task)
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    save_file(adapter_state_dict(ours), tmp_path / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings(
            "ignore", message=".*tie_word_embeddings.*"
        )  # PEFT's advice on Llama's embeddings
        theirs = peft.PeftModel.from_pretrained(FAMILIES[family](), str(tmp_path)).eval()
    assert_close(logits(theirs), logits(ours), **TOLERANCE)


@pytest.mark.parametrize(("family", "option"), CASES)
def test_pefts_is_read_by_ours(family: str, option: str, tmp_path: Path) -> None:
    given = options(family)[option]
    task = TASK[family] if option == "defaults" or "modules_to_save" in given else None
    theirs = peft_model(family, given, task_type=task)
    shaken_([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(str(tmp_path))
    config = lora_config_from_peft(json.loads((tmp_path / "adapter_config.json").read_text()))
    ours = FAMILIES[family]()
    attach(ours, config, strict=False)
    load_adapter_state_dict(ours, load_file(tmp_path / "adapter_model.safetensors"))
    assert_close(logits(ours), logits(theirs), **TOLERANCE)


@pytest.mark.parametrize("slices", [["q"], ["v"], ["q", "v"], ["q", "k", "v"]], ids="".join)
@pytest.mark.parametrize("rslora", [False, True])
def test_slices_are_read_by_peft_as_an_ordinary_adapter(
    slices: list[str], rslora: bool, tmp_path: Path
) -> None:
    model = FAMILIES["gpt2"]()
    config = LoraConfig(
        target_modules=["c_attn", "c_proj"], qkv_slices=slices, r=3, lora_alpha=6, use_rslora=rslora
    )
    attach(model, config, seed=1)
    shaken_([parameter for _, parameter in adapter_parameters(model)])
    written = peft_config_dict(config, model, base_model_name_or_path=None, task_type=None)
    state = adapter_state_dict(model)
    assert state["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (3 * len(slices), 16)
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    save_file(state, tmp_path / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(FAMILIES["gpt2"](), str(tmp_path)).eval()
    assert_close(logits(theirs), logits(model), **TOLERANCE)
    plain = FAMILIES["gpt2"]()  # and ours reads it as an ordinary one too
    attach(plain, lora_config_from_peft(written))
    load_adapter_state_dict(plain, state)
    assert_close(logits(plain), logits(model), **TOLERANCE)


def test_dropout_is_pefts_with_the_same_seed() -> None:
    """In training, PyTorch's generator gives both the same masks."""
    given = options("bert")["lora_dropout"]
    theirs, ours = peft_model("bert", given).train(), FAMILIES["bert"]()
    attach(ours, LoraConfig(**given), seed=1)
    ours.train()
    for module in (*theirs.modules(), *ours.modules()):  # no dropout but LoRA's
        if isinstance(module, nn.Dropout) and module.p != 0.3:
            module.p = 0.0
    shaken_([p for p in theirs.parameters() if p.requires_grad])
    mine = {our_key(ours, name): parameter for name, parameter in adapter_parameters(ours)}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            mine[peft_key(name)].data.copy_(parameter.data)
    eval_answer = logits(ours.eval())
    ours.train()
    torch.manual_seed(8)
    wanted = logits(theirs)
    torch.manual_seed(8)
    got = logits(ours)
    assert not torch.allclose(got, eval_answer, atol=1e-3)
    assert_close(got, wanted, **TOLERANCE)


def test_pissa_trains_as_pefts() -> None:
    """Three steps of SGD from the same base: the same losses, and at the start the base's own answer."""
    given = {"target_modules": ["query", "value"], "r": 2, "init_lora_weights": "pissa"}
    theirs, ours = peft_model("bert", given), FAMILIES["bert"]()
    attach(ours, LoraConfig(**given), seed=1)
    assert_close(logits(ours), logits(FAMILIES["bert"]()), rtol=1e-5, atol=1e-5)  # W - PQ + PQ in fp32
    losses: list[list[float]] = []
    for model in (theirs, ours):
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        losses.append([])
        for _ in range(3):
            optimiser.zero_grad()
            loss = logits(model).square().mean()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[0][2] < losses[0][0]
    assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_converted_pissa_of_peft(tmp_path: Path) -> None:
    """PEFT's own conversion to an ordinary LoRA of rank 2 r is read, and is what ours writes."""
    given = {"target_modules": ["query"], "r": 2, "init_lora_weights": "pissa"}
    theirs = peft_model("bert", given)
    start, trained = tmp_path / "start", tmp_path / "trained"
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(str(start))
    theirs.peft_config["default"].init_lora_weights = "pissa"
    shaken_([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(str(trained), path_initial_model_for_weight_conversion=str(start))
    written = json.loads((trained / "adapter_config.json").read_text())
    assert written["r"] == 4
    config = lora_config_from_peft(written)
    ours = FAMILIES["bert"]()
    attach(ours, config, strict=False)
    load_adapter_state_dict(ours, load_file(trained / "adapter_model.safetensors"))
    mine = FAMILIES["bert"]()
    attach(mine, LoraConfig(**given))
    pissa = {peft_key(n): p.detach() for n, p in theirs.named_parameters() if p.requires_grad}
    load_adapter_state_dict(mine, pissa)
    stored = peft_config_dict(LoraConfig(**given), mine, base_model_name_or_path=None, task_type=None)
    assert (stored["r"], stored["lora_alpha"]) == (written["r"], written["lora_alpha"])
    assert_close(logits(mine), logits(ours), **TOLERANCE)


def test_padding_row_of_an_embedding_gets_no_gradient() -> None:
    ours = FAMILIES["bert"]()
    attach(ours, LoraConfig(target_modules=["word_embeddings"]), seed=1)
    parameters = dict(adapter_parameters(ours))
    shaken_(list(parameters.values()))
    logits(ours).square().mean().backward()
    grad = next(p.grad for n, p in parameters.items() if n.endswith("lora_A"))
    assert isinstance(grad, Tensor)
    assert grad.shape == (8, VOCABULARY)
    assert not grad[:, 0].any()
    used = token_ids().unique()
    assert grad[:, used[used != 0]].abs().sum() > 0
