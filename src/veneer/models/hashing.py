"""The content hash of a base: what its weights are, whatever files they lie in.

Two folders with the same tensors (names, dtypes, shapes, bytes) have the same hash, one file or many. The hash is
computed once for a file and cached by the file's path, size and times of change.

This file knows the safetensors layout (an 8-byte length, a JSON header, then the tensors) and no model.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veneer.errors import BaseError
from veneer.files import cache_root

__all__ = ["content_hash", "file_hash", "weight_files"]


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those that transformers loads, which takes a single file first.

    Raises:
        BaseError: there is none (with the mend, where the weights are pickled), or the index is damaged.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BaseError(
                f"{index} does not say which files hold the weights. Download it again."
            ) from error
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise BaseError(f"{folder}: {index.name} names files that are not there: {', '.join(missing)}.")
        return files
    if list(folder.glob("*.bin")):
        raise BaseError(
            f"{folder} holds its weights as pickles (*.bin), which can run code when they are opened. "
            "Convert it once: load it with transformers and call save_pretrained() (it writes safetensors)."
        )
    raise BaseError(f"{folder} holds no weights: expected model.safetensors.")


def content_hash(folder: Path) -> str:
    """The hash of a model folder's tensors, "sha256:" and 64 hex digits; cached.

    Raises:
        BaseError: no weights, or a damaged file.
    """
    files = weight_files(folder)
    key = hashlib.sha256(repr([_stamp(file) for file in files]).encode()).hexdigest()[:32]
    cached = cache_root() / "hashes" / key
    try:
        return cached.read_text(encoding="ascii")
    except OSError:
        found = "sha256:" + _hash_tensors(files)
    _remember(cached, found)
    return found


def _stamp(file: Path) -> tuple[str, int, int, int]:
    """What changes when the file does; the time of the last change of its entry can't be set by a copy."""
    real = file.resolve()
    stat = real.stat()
    return str(real), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _remember(path: Path, text: str) -> None:
    """Write the cached hash, whole or not at all; a cache that can't be written costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="ascii") as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError:
        return


def _hash_tensors(files: Sequence[Path]) -> str:
    """sha256 over every tensor in the order of the names: name, dtype, shape, bytes."""
    places: list[tuple[str, Path, dict[str, object], int]] = []
    for file in files:
        header, start = _header(file)
        places += [(name, file, entry, start) for name, entry in header.items() if name != "__metadata__"]
    digest = hashlib.sha256()
    maps = {file: _mapped(file) for file in files}
    for name, file, entry, start in sorted(places, key=lambda place: place[0]):
        offsets: Any = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        with memoryview(maps[file]) as view, view[start + offsets[0] : start + offsets[1]] as part:
            digest.update(part)
    for mapped in maps.values():
        mapped.close()
    return digest.hexdigest()


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _header(file: Path) -> tuple[dict[str, dict[str, object]], int]:
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            if not 0 < size < 100_000_000:
                raise ValueError(f"its header would have {size} bytes")
            header = json.loads(handle.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        wanted, there = 8 + size + max(ends, default=0), file.stat().st_size
        if wanted != there:
            raise ValueError(f"it has {there:,} bytes, its header says {wanted:,}")
        return header, 8 + size
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseError(f"{file} is not a whole safetensors file ({error}). Download it again.") from error
