"""Stored changes give back the very model, and refuse every other base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from veneer.errors import AdapterError, BaseError, ConfigError
from veneer.models.changes import load_changes_, write_changes

NAMES = ["transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias", "score.weight"]


def base(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2, num_labels=2,
                        bos_token_id=0, eos_token_id=0, pad_token_id=0)  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


@pytest.fixture
def tuned() -> nn.Module:
    model = base()
    with torch.no_grad():
        for name in NAMES:
            model.get_parameter(name).add_(0.1)
    return model


def test_the_model_comes_back_bit_for_bit(tuned: nn.Module, tmp_path: Path) -> None:
    facts = write_changes(tmp_path / "c", tuned, NAMES, base_name="tiny")
    again = base()
    assert load_changes_(again, tmp_path / "c") == facts
    torch.testing.assert_close(again.state_dict(), tuned.state_dict(), atol=0, rtol=0)
    assert facts.values == 16 * 48 + 48 + 32
    stored = (tmp_path / "c" / "changes.safetensors").stat().st_size
    assert stored < 4 * facts.values + 1000
    assert load_file(tmp_path / "c" / "changes.safetensors").keys() == set(NAMES)


def test_a_head_of_other_random_values_does_not_matter(tuned: nn.Module, tmp_path: Path) -> None:
    write_changes(tmp_path / "c", tuned, NAMES, base_name="tiny")
    again = base()
    with torch.no_grad():
        again.score.weight.normal_()
    load_changes_(again, tmp_path / "c")
    torch.testing.assert_close(again.state_dict(), tuned.state_dict(), atol=0, rtol=0)


def test_another_base_is_refused(tuned: nn.Module, tmp_path: Path) -> None:
    write_changes(tmp_path / "c", tuned, NAMES, base_name="tiny")
    other = base(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(BaseError, match=r"not the base of .*\(tiny\)"):
        load_changes_(other, tmp_path / "c")
    torch.testing.assert_close(dict(other.state_dict()), before, atol=0, rtol=0)


def test_faults_are_listed(tuned: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing_here"):
        write_changes(tmp_path / "c", tuned, ["nothing_here"], base_name="tiny")
    write_changes(tmp_path / "c", tuned, NAMES, base_name="tiny")
    file = tmp_path / "c" / "changes.safetensors"
    tensors = load_file(file)
    tensors[NAMES[0]][0, 0] = torch.nan
    tensors[NAMES[1]] = tensors[NAMES[1]][:-1].clone()
    save_file(tensors, file)
    with pytest.raises(AdapterError) as caught:
        load_changes_(base(), tmp_path / "c")
    assert len(caught.value.faults) == 2
    del tensors[NAMES[2]]
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=r"different tensors \(score\.weight\)"):
        load_changes_(base(), tmp_path / "c")
    file.write_bytes(b"half")
    with pytest.raises(AdapterError, match="can't be read"):
        load_changes_(base(), tmp_path / "c")
