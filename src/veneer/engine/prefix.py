"""The frozen prefix: the layers below the first adapted one, computed once for each text and kept.

Their hidden states do not change in training, so every epoch, every evaluation and every later run over the same texts
reads them instead of computing them again. They lie in one file (which the system keeps in memory as far as there is
room for it), in the compute dtype, under a name made of what they depend on: base, tokens, depth, dtype. Under causal
attention texts that begin alike share the computation of their beginning.

This file knows programs and token ids; it knows no task and no adapter but where the first one is.

Shapes: N texts, T tokens, C hidden size, U distinct beginnings of texts (nodes of their tree).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veneer.engine.beginnings import beginnings_of, common_beginning
from veneer.engine.blocks import Program
from veneer.engine.kept_states import KeptStates
from veneer.engine.packing import pack
from veneer.files import cache_folder

__all__ = ["PrefixStore", "build_prefix", "first_trained_block"]

_BATCH_STATES = 3071  # of tokens, or of the nodes that texts share; they fill 3,072 rows
LIMIT_BYTES = 8 * 2**30
"""All kept prefixes together take at most this much of the disk; the oldest go first."""


class Sequences(Protocol):
    """Token ids of N texts."""

    @property
    def lengths(self) -> NDArray[Any]:
        """(N,) tokens of each."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class PrefixStore:
    """Hidden states before block `start` of N texts.

    Attributes:
        start: the first block that is still computed.
        kept: (T, C) states, text after text.
        offsets: (N + 1,) where each text's states begin.
        shared: share of the tokens that did not have to be computed.
    """

    start: int
    kept: KeptStates
    offsets: NDArray[np.int64]
    shared: float

    def below(self, texts: Sequence[int] | NDArray[np.int64], device: torch.device) -> tuple[int, Tensor]:
        """What `Runner.hidden_states` takes as `below`, for these texts in this order."""
        return self.start, self.take(texts).to(device)

    def take(self, texts: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(T of these texts, C) their states, end to end in this order."""
        return self.kept.read([(int(self.offsets[i]), int(self.offsets[i + 1])) for i in texts])

    @property
    def states(self) -> Tensor:
        """(T, C) all of them, read into memory."""
        return self.kept.read([(0, int(self.offsets[-1]))])


def first_trained_block(program: Program, model: nn.Module) -> int:
    """The number of the lowest block that holds anything trained; 0 where something below the blocks is."""
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    if not trained:
        return len(program.blocks)
    inside: set[int] = set()
    lowest: int | None = None
    for i, block in enumerate(program.blocks):
        for group in (block.qkv, block.out, block.up, block.down):
            inside |= {id(p) for layer in group.layers for p in layer.parameters()}
        inside |= {id(p) for norm in block.norms for p in norm.parameters()}
        if lowest is None and trained & inside:
            lowest = i
    # What is trained outside of the blocks stands above them (last norm, head) or below (embeddings).
    outside = trained - inside
    return 0 if _below(program, model, outside) else (len(program.blocks) if lowest is None else lowest)


def _below(program: Program, model: nn.Module, trained: set[int]) -> bool:
    above = (
        {id(p) for p in getattr(*program.last_norm).parameters()} if program.last_norm is not None else set()
    )
    prefix = getattr(model, "base_model_prefix", "")
    for name, parameter in model.named_parameters():
        in_body = name.startswith(f"{prefix}.") and not name.startswith(f"{prefix}.pooler.")
        if id(parameter) in trained - above and in_body:
            return True
    return False


def build_prefix(
    program: Program,
    sequences: Sequences,
    start: int,
    *,
    base_hash: str,
    dtype: torch.dtype,
    device: torch.device,
    causal: bool,
    progress: Callable[[int, int], None] | None = None,
) -> PrefixStore:
    """The states before block `start` of all texts: found in the cache, or computed and kept there.

    Args:
        program: whose blocks are computed.
        sequences: the texts.
        start: how many blocks.
        base_hash: content hash of the base.
        dtype: of the states, the compute dtype.
        device: where the program computes; the states are kept in the machine's memory.
        causal: whether beginnings can be shared.
        progress: told of texts done, and N.
    """
    lengths = np.asarray(sequences.lengths, dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    shape = (int(offsets[-1]), program.width)
    path = cache_folder("prefixes") / f"{_key(sequences, base_hash, start, dtype)}.bin"
    if not path.is_file() or path.stat().st_size != shape[0] * shape[1] * dtype.itemsize:
        with _writer(path, shape, dtype) as kept:
            shared = _compute(program, sequences, start, kept, offsets, device, causal, progress)
        _forget_oldest(path)
    else:
        path.touch()
        shared = 0.0
    return PrefixStore(start, KeptStates(path, shape, dtype), offsets, shared)


def _compute(
    program: Program,
    sequences: Sequences,
    start: int,
    kept: KeptStates,
    offsets: NDArray[np.int64],
    device: torch.device,
    causal: bool,
    progress: Callable[[int, int], None] | None,
) -> float:
    """Fill `kept`; returns the share of tokens that were shared."""
    computed = done = 0
    for texts in _batches(sequences, alike=causal):
        batch = pack([sequences[i] for i in texts])
        batch = batch.to(device)
        shared = beginnings_of(batch, program.rows(batch), always=True) if causal else None
        computed += batch.tokens if shared is None else shared.nodes
        states = program.prefix(batch, start, shared).cpu()
        node_of_token = None if shared is None else shared.node_of_token.cpu()
        at = 0
        for place in batch.order:
            text = texts[place]
            n = int(offsets[text + 1] - offsets[text])
            own = states[at : at + n] if node_of_token is None else states[node_of_token[at : at + n]]
            kept.write(int(offsets[text]), own)
            at += n
        done += len(texts)
        if progress is not None:
            progress(done, len(sequences))
    return 1.0 - computed / max(1, int(offsets[-1]))


def _batches(sequences: Sequences, *, alike: bool) -> list[list[int]]:
    """Texts in batches: those that begin alike together, or those of one length.

    A batch takes as many texts as have `_BATCH_STATES` states to be computed, so that nearly all batches have the same
    number: what follows is few kernels, and memory that is used again.
    """
    n = len(sequences)
    if alike:
        texts = [sequences[i].tolist() for i in range(n)]
        order = sorted(range(n), key=texts.__getitem__)
        begun = [0, *(common_beginning((texts[i], texts[j])) for i, j in pairwise(order))]
    else:
        order = np.argsort(-np.asarray(sequences.lengths), kind="stable").tolist()
        begun = [0] * n
    batches: list[list[int]] = []
    states = tokens = _BATCH_STATES
    for i, known in zip(order, begun, strict=True):
        length = int(sequences.lengths[i])
        if states + length - known > _BATCH_STATES or tokens + length > 2 * _BATCH_STATES:
            batches.append([])
            states = tokens = known = 0
        batches[-1].append(i)
        states += length - known
        tokens += length
    return batches


@contextmanager
def _writer(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Iterator[KeptStates]:
    """A file of states that gets its name when it is whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.ftruncate(handle, shape[0] * shape[1] * dtype.itemsize)
    os.close(handle)
    kept = KeptStates(Path(name), shape, dtype, writing=True)
    try:
        yield kept
    except BaseException:
        kept.close()
        kept.path.unlink(missing_ok=True)
        raise
    kept.close()
    kept.path.replace(path)


def _key(sequences: Sequences, base_hash: str, start: int, dtype: torch.dtype) -> str:
    digest = hashlib.sha256(f"1 {base_hash} {start} {dtype} {len(sequences)}".encode())
    for i in range(len(sequences)):
        ids = np.ascontiguousarray(sequences[i], dtype="<i4")
        digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.hexdigest()[:40]


def _forget_oldest(newest: Path) -> None:
    """Remove the files used longest ago until all together are under the limit; the newest stays."""
    files = sorted(newest.parent.glob("*.bin"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total <= LIMIT_BYTES or path == newest:
            return
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
