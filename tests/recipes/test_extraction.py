"""`veneer extract` on folders: a difference of known rank, and the answers before and after."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2Model

from veneer.cli import main
from veneer.errors import BaseError, ConfigError, UserMistake
from veneer.recipes.extraction import extract_folders

RANK = 3
LAYERS = ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc")


def documented(verb: str) -> set[str]:
    """The keys that docs/json.md lists for a verb."""
    page = Path(__file__).parents[2] / "docs" / "json.md"
    section = page.read_text(encoding="utf-8").split(f"## `{verb}`")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE))


def write(model: nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A bare base, and a classifier whose two layers differ from it by rank 3 and one bias by a little."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=32, n_layer=2, n_head=4, num_labels=3,
                        pad_token_id=59, bos_token_id=59, eos_token_id=59)  # fmt: skip
    base = GPT2Model(config)
    tuned = GPT2ForSequenceClassification(config)
    tuned.transformer = copy.deepcopy(base)
    with torch.no_grad():
        tuned.score.weight.normal_(0, 1)
        for name in LAYERS:
            weight = tuned.get_submodule(name).weight
            n, m = weight.shape
            weight.add_(torch.randn(n, RANK) @ torch.randn(RANK, m) * 0.3)
        tuned.transformer.h[1].ln_2.bias.add_(0.001)
    return write(base, tmp_path / "base"), write(tuned, tmp_path / "tuned")


def answers(folder: str, adapter: Path | None) -> torch.Tensor:
    """The labels that PEFT, or transformers alone, gives 200 texts."""
    import peft

    model = GPT2ForSequenceClassification.from_pretrained(folder, num_labels=3)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ids = torch.randint(0, 59, (200, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.filterwarnings("ignore")  # transformers and PEFT tell of the head that the base lacks
def test_the_adapter_answers_as_the_tuned_model(folders: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base, tuned = folders
    found = extract_folders(base, tuned, r=RANK, out=tmp_path / "adapter")
    assert tuple(found.layers) == LAYERS
    assert found.error < 1e-5  # fp32 rounding of the weights
    assert found.saved_whole == ("score",)
    assert [each.name for each in found.unrepresented] == ["transformer.h.1.ln_2.bias"]
    expected, got = answers(tuned, None), answers(base, tmp_path / "adapter")
    agree = (expected.argmax(1) == got.argmax(1)).float().mean().item()
    assert agree == 1.0
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)  # the bias of 0.001 that is in no adapter
    extract_folders(base, tuned, r=1, out=tmp_path / "lower")
    worse = answers(base, tmp_path / "lower")
    assert (worse - expected).abs().max() > 10 * (got - expected).abs().max()
    assert len(set(expected.argmax(1).tolist())) > 1


def test_the_lowest_rank_for_an_error(folders: tuple[str, str], tmp_path: Path) -> None:
    base, tuned = folders
    found = extract_folders(base, tuned, max_error=0.01)
    assert found.r == RANK
    assert found.folder is None
    looser = extract_folders(base, tuned, max_error=0.9, out=tmp_path / "a")
    assert looser.r == 1
    assert looser.error <= 0.9
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "errors.json", "singular_values.png"}
    stored = json.loads((tmp_path / "a" / "errors.json").read_text())
    assert stored["ranks"][:3] == [1, 2, 4]
    assert stored["errors"] == sorted(stored["errors"], reverse=True)
    with pytest.raises(UserMistake, match="Give overwrite=True to replace it, or another place with out"):
        extract_folders(base, tuned, r=1, out=tmp_path / "a")


def test_a_head_that_both_have_is_stored_whole(folders: tuple[str, str], tmp_path: Path) -> None:
    _, tuned = folders
    model = GPT2ForSequenceClassification.from_pretrained(tuned, num_labels=3)
    with torch.no_grad():
        model.score.weight.add_(0.5)
        model.transformer.h[0].mlp.c_proj.weight[0] += 0.5
    found = extract_folders(tuned, write(model, tmp_path / "further"), r=1, out=tmp_path / "a")
    assert found.saved_whole == ("score",)
    assert list(found.layers) == ["transformer.h.0.mlp.c_proj"]
    assert found.error < 1e-6  # a row is of rank 1


def test_mistakes_are_named(folders: tuple[str, str], tmp_path: Path) -> None:
    base, tuned = folders
    with pytest.raises(ConfigError, match="Give one of the two"):
        extract_folders(base, tuned)
    with pytest.raises(BaseError, match="no folder"):
        extract_folders(base, str(tmp_path / "nothing"), r=1)
    torch.manual_seed(0)
    other = GPT2Model(GPT2Config(vocab_size=60, n_positions=16, n_embd=32, n_layer=3, n_head=4))
    with pytest.raises(BaseError):
        extract_folders(write(other, tmp_path / "other"), tuned, r=1)


def test_the_command(folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = folders
    assert main(["extract", base, tuned, "--max-error", "0.01", "--out", str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    assert "rank" in out
    assert "3; error 0.00%" in out
    assert "ln_2.bias" in err
    assert main(["extract", base, tuned, "--r", "2", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == documented("extract")
    assert main(["extract", base, tuned, "--json"]) == 2
    assert "Give one of the two" in json.loads(capsys.readouterr().out)["error"]["message"]
