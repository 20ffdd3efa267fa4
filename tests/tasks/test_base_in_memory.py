"""An adapted base keeps no second copy of its weights: neither its mapped file nor what the start-up check arranged."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from bases import tiny_bert, tiny_gpt2
from veneer.engine import pack
from veneer.lora import LoraConfig
from veneer.models import load_base
from veneer.tasks.adapted import adapt
from veneer.tasks.classification import Classification

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.is_file(), reason="the system does not list a process's mapped files")
@pytest.mark.parametrize("kind", [tiny_bert, tiny_gpt2])
def test_a_base_cast_to_bf16_lies_in_memory_once(tmp_path: Path, kind: object) -> None:
    others = _wide()  # of other tests
    base = load_base(str(kind(tmp_path / "base")), labels=("a", "b"))  # type: ignore[operator]
    file = str(base.folder / "model.safetensors")
    assert file in MAPS.read_text(encoding="utf-8")
    task = Classification(labels=("a", "b"), pooling=base.pooling)
    lora = LoraConfig(r=2, target_modules="all-linear", modules_to_save=base.head)
    adapted = adapt(base, task, lora, precision="bf16", mode="packed")
    gc.collect()
    assert file not in MAPS.read_text(encoding="utf-8")
    large = _largest(adapted.model)
    assert [t for t in _wide() if t.shape == large and not any(t is other for other in others)] == []
    with torch.inference_mode():
        assert adapted.outputs(pack([[5, 6, 7], [8, 9]])).shape == (2, 2)


def _wide() -> list[torch.Tensor]:
    """All plain tensors in fp32."""
    return [t for t in gc.get_objects() if type(t) is torch.Tensor and t.dtype is torch.float32]


def _largest(model: torch.nn.Module) -> torch.Size:
    """The shape of the largest frozen weight inside of a block."""
    frozen = [p for name, p in model.named_parameters() if not p.requires_grad and ".0." in name]
    return max(frozen, key=lambda p: p.numel()).shape
