"""Which modules a configuration means: as PEFT says, and an error where PEFT goes on without a word."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import FAMILIES, bert, distilbert, gpt2
from torch import nn

from veneer.errors import TargetError
from veneer.lora import LoraConfig, attach, resolve_targets
from veneer.lora.matching import selects, shortest_suffixes


def adapted(model: nn.Module, **fields: Any) -> list[str]:
    return [target.name for target in resolve_targets(model, LoraConfig(**fields)).targets]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_what_peft_takes(family: str) -> None:
    head = {"gpt2": ["score"], "bert": ["classifier"], "distilbert": ["pre_classifier", "classifier"]}.get(
        family
    )
    theirs = peft.get_peft_model(
        FAMILIES[family](), peft.LoraConfig(target_modules="all-linear", modules_to_save=head)
    )
    ours = adapted(FAMILIES[family](), target_modules="all-linear", modules_to_save=head)
    assert ours == sorted(ours, key=theirs.base_model.targeted_module_names.index)
    assert len(ours) == len(theirs.base_model.targeted_module_names) > 5


def test_blocks_can_be_chosen() -> None:
    config = {"target_modules": ["c_attn"], "layers_to_transform": [1, 2]}
    assert adapted(gpt2(), **config) == ["transformer.h.1.attn.c_attn", "transformer.h.2.attn.c_attn"]
    assert adapted(gpt2(), target_modules=["h.2.attn.c_attn"]) == ["transformer.h.2.attn.c_attn"]
    assert adapted(gpt2(), target_modules=r".*\.2\.attn\.c_attn") == ["transformer.h.2.attn.c_attn"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "target_modules is not given"),
        ({"target_modules": ["c_atn"]}, "'c_atn' matches no module.*'c_attn'"),
        ({"target_modules": ["c_attn", "attn.c_prj"]}, "'attn.c_prj' matches no module.*'attn.c_proj'"),
        ({"target_modules": ".*query"}, "matches no module"),
        ({"target_modules": ["attn"]}, "transformer.h.0.attn, a GPT2Attention"),
        ({"target_modules": ["ln_1"]}, "transformer.h.0.ln_1, a LayerNorm"),
        ({"target_modules": ["c_attn"], "exclude_modules": ["c_fcc"]}, "exclude_modules: 'c_fcc'.*'c_fc'"),
        (
            {"target_modules": ["c_attn"], "exclude_modules": ["c_attn"]},
            "all 3 modules that 'c_attn'.*taken out",
        ),
        ({"target_modules": ["c_attn"], "modules_to_save": ["scor_"]}, "modules_to_save: .*'scor_'.*'score'"),
        (
            {"target_modules": ["c_attn"], "rank_pattern": {"c_proj": 2}},
            "rank_pattern: 'c_proj' counts for none",
        ),
        ({"target_modules": ["c_attn"], "alpha_pattern": {"c_atn": 2}}, "alpha_pattern: 'c_atn'.*'c_attn'"),
        ({"target_modules": ["c_attn"], "layers_to_transform": [1, 7]}, "block 7 has no module 'c_attn'"),
        ({"target_modules": ["c_attn"], "layers_to_transform": [7]}, r"blocks \(7,\).*3 elsewhere"),
        (
            {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "layer"},
            "layers_pattern 'layer'.*Correct",
        ),
        ({"target_modules": ["c_proj"], "qkv_slices": ["q"]}, "qkv_slices.*none is among"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_pattern_that_means_nothing_is_an_error(fields: dict[str, Any], says: str) -> None:
    model = gpt2()
    before = list(model.named_modules())
    with pytest.raises(TargetError, match=says):
        attach(model, LoraConfig(**fields))
    assert list(model.named_modules()) == before


class Block(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


class Uneven(nn.Module):
    """Four blocks of one type; only some have `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block("up", "gate") if i in (0, 2) else Block("up") for i in range(4))


def test_a_pattern_that_matches_some_blocks_is_an_error_that_names_the_others() -> None:
    with pytest.raises(TargetError, match=r"'gate' matches in block 0, 2 of blocks and not in block 1, 3"):
        resolve_targets(Uneven(), LoraConfig(target_modules=["up", "gate"]))
    with pytest.raises(TargetError, match="and not in block 1, 3"):
        resolve_targets(Uneven(), LoraConfig(target_modules=r".*\.gate"))


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["gate"], "layers_to_transform": [0, 2]},
        {"target_modules": ["blocks.0.gate", "2.gate"]},
        {"target_modules": r"blocks\.[02]\.gate"},
    ],
    ids=["layers_to_transform", "numbers", "regex"],
)
def test_blocks_that_are_named_are_no_error(fields: dict[str, Any]) -> None:
    assert adapted(Uneven(), **fields) == ["blocks.0.gate", "blocks.2.gate"]


def test_an_excluded_block_is_no_error() -> None:
    found = adapted(gpt2(), target_modules=["c_attn"], exclude_modules=["h.0.attn.c_attn"])
    assert found == ["transformer.h.1.attn.c_attn", "transformer.h.2.attn.c_attn"]


def test_not_strict_takes_what_matches() -> None:
    config = LoraConfig(target_modules=["up", "gate", "nothing"], modules_to_save=["score"])
    assert len(resolve_targets(Uneven(), config, strict=False).targets) == 6
    with pytest.raises(TargetError, match="'nothing'"):
        resolve_targets(Uneven(), LoraConfig(target_modules=["nothing"]), strict=False)


def test_layers_whose_weight_is_read_past_their_forward_are_refused() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16)

    with pytest.raises(TargetError, match=r"layer.linear1 is read by TransformerEncoderLayer"):
        resolve_targets(Encoder(), LoraConfig(target_modules=["linear1"]))
    with pytest.raises(TargetError, match="out_proj is read by MultiheadAttention"):
        resolve_targets(Encoder(), LoraConfig(target_modules=["out_proj"]))


def test_a_module_in_two_places_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = self.first

    with pytest.raises(TargetError, match="first and second are one and the same module"):
        resolve_targets(Shared(), LoraConfig(target_modules=["first"]))


def test_subclasses_with_a_forward_of_their_own_are_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(TargetError, match="selects 0, a Doubled"):
        resolve_targets(nn.Sequential(Doubled(2, 2)), LoraConfig(target_modules=["0"]))


def test_the_report_says_what_each_pattern_matched() -> None:
    config = LoraConfig(
        target_modules=["query", "output.dense"], rank_pattern={"query": 2}, modules_to_save=["classifier"],
        exclude_modules=["0.output.dense"],
    )  # fmt: skip
    found = {(m.field, m.pattern): len(m.modules) for m in resolve_targets(bert(), config).patterns}
    assert found == {
        ("target_modules", "query"): 3,
        ("target_modules", "output.dense"): 5,
        ("exclude_modules", "0.output.dense"): 1,
        ("rank_pattern", "query"): 3,
        ("modules_to_save", "classifier"): 1,
    }
    text = str(attach(bert(), config))
    assert "target_modules 'query': 3 (bert.encoder.layer.0.attention.self.query" in text
    assert "3 x Linear query 16 -> 16: r 2, scaling 4" in text


def test_the_end_of_a_name_saves_a_module_as_in_peft() -> None:
    """`classifier` is the end of DistilBERT's `pre_classifier`, which is new with the head and has to train."""
    found = resolve_targets(
        distilbert(), LoraConfig(target_modules=["q_lin"], modules_to_save=["classifier"])
    )
    assert found.saved == ("pre_classifier", "classifier")


paths = st.lists(st.sampled_from(["a", "b", "c", "0", "1"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(paths, min_size=1, max_size=12), st.data())
def test_shortest_suffixes_select_exactly(everything: set[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(everything)), min_size=1))
    others = everything - chosen
    suffixes = shortest_suffixes(chosen, others)
    picked = {name for name in everything if any(selects(suffix, name) for suffix in suffixes)}
    assert picked >= chosen
    for extra in picked - chosen:  # only where a chosen name is itself the end of another: no list can do it
        assert any(extra.endswith("." + name) for name in chosen)
