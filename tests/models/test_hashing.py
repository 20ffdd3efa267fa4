"""The content hash of a base: of its tensors, whatever files they lie in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from bases import tiny_bert
from veneer.errors import BaseError
from veneer.files import cache_root
from veneer.models import content_hash, hashing


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "base")


def hashed_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the tensors are read."""
    calls: list[int] = []
    plain = hashing._hash_tensors
    monkeypatch.setattr(hashing, "_hash_tensors", lambda files: calls.append(1) or plain(files))
    return calls


def test_one_file_and_many_have_the_same_hash(base: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModel.from_pretrained(base).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    again = tmp_path / "again"
    AutoModel.from_pretrained(sharded).save_pretrained(again)
    assert content_hash(sharded) == content_hash(again) == content_hash(base)


def test_the_order_of_the_tensors_and_the_metadata_do_not_count(base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    reversed_ = dict(reversed(list(tensors.items())))
    save_file(reversed_, other / "model.safetensors", metadata={"made": "by hand"})
    assert content_hash(other) == content_hash(base)


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype", "missing"])
def test_another_tensor_has_another_hash(base: Path, change: str) -> None:
    before = content_hash(base)
    tensors = load_file(base / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensor = tensors.pop(name)
    if change == "value":
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(9.0))
        tensors[name] = tensor
    elif change == "name":
        tensors[f"{name}.other"] = tensor
    elif change == "shape":
        tensors[name] = tensor.t().contiguous()
    elif change == "dtype":
        tensors[name] = tensor.view(torch.int32)
    save_file(tensors, base / "model.safetensors")
    assert content_hash(base) != before


def test_the_hash_is_cached_and_found_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hashed_again(monkeypatch)
    assert content_hash(base) == content_hash(base)
    assert len(calls) == 1


def test_a_changed_file_is_hashed_again_even_with_the_old_time(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hashed_again(monkeypatch)
    before = content_hash(base)
    path = base / "model.safetensors"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` or `rsync -t` does
    assert content_hash(base) != before
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = content_hash(base)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "a file"))
    calls = hashed_again(monkeypatch)
    assert [content_hash(base), content_hash(base)] == [expected] * 2
    assert len(calls) == 2


def test_of_one_file_and_an_index_the_one_that_transformers_loads_counts(base: Path, tmp_path: Path) -> None:
    """Hashing the index's files would vouch for weights that nobody loads."""
    expected = content_hash(base)
    other = AutoModel.from_pretrained(tiny_bert(tmp_path / "other", seed=1))
    other.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for file in (tmp_path / "shards").iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            file.rename(base / file.name)
    loaded = AutoModel.from_pretrained(base).state_dict()
    stored = load_file(base / "model.safetensors")
    torch.testing.assert_close({name: loaded[name] for name in stored}, stored, rtol=0, atol=0)
    assert content_hash(base) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"<html>not found</html>", "not a whole safetensors file"),
        ((5).to_bytes(8, "little") + b"[1,2", "not a whole safetensors file"),
    ],
)
def test_a_damaged_file_is_named(base: Path, content: bytes, message: str) -> None:
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseError, match=message):
        content_hash(base)


@pytest.mark.parametrize("index", ["{", "{}", "[]", '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named(base: Path, index: str) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BaseError, match=r"model\.safetensors\.index\.json does not say"):
        content_hash(base)


def test_shards_that_are_not_there_are_named(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(BaseError, match=r"names files that are not there: one\.safetensors"):
        content_hash(base)


def test_a_cut_file_is_an_error_and_not_another_hash(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BaseError, match="not a whole safetensors file"):
        content_hash(base)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"VENEER_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/veneer"),
        ({"HOME": "/c"}, "/c/.cache/veneer"),
    ],
)
def test_where_the_cache_lies(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VENEER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)
