"""The floor: the floating-point operations that a workload can't do without, for its real tokens.

Counted are, for each linear layer, 2 operations per weight and token forward, 2 for the input gradient where something
trained stands below, and the LoRA terms; the scores and sums of attention over the keys that a token sees; the trained
head. Not counted are padding, frozen layers below the first adapted one (computed once: `prefix`), and in the last
block whatever nobody reads. Norms, activations, softmax and the optimiser count as nothing: no program reaches 100 %.

It knows numbers; no torch and no model.

Shapes: B texts, T tokens, S tokens read, C hidden size, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Layers", "Model", "head", "linear", "pairs", "prefix", "step"]

QKV, OUT, UP, DOWN = "qkv", "out", "up", "down"


@dataclass(frozen=True)
class Layers:
    """The adapted layers of one block.

    Attributes:
        ranks: r by place: "qkv", "out", "up", "down". 0 or left out: frozen.
        fused: query, key and value are one layer with one adapter (GPT-2), not three with one each (BERT).
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    fused: bool = True

    def rank(self, place: str) -> int:
        """r at a place."""
        return self.ranks.get(place, 0)

    @property
    def adapted(self) -> bool:
        """Whether anything of the block is."""
        return any(self.ranks.values())


@dataclass(frozen=True)
class Model:
    """What the count needs to know of a model.

    Attributes:
        width: C.
        inner: outputs of the feed-forward layer's first half.
        causal: a token sees what stands before it and itself, not its whole text.
        blocks: the adapted layers of each block.
        pooler: rank of a C x C layer between the last block and the head; None: there is none.
        labels: outputs of the trained head; 0: no head.
        reads: "one" token of each text, or "all".
        vocabulary: outputs of a frozen head over the tokens that the loss reads (see `step`); 0: there is none.
    """

    width: int
    inner: int
    causal: bool
    blocks: Sequence[Layers]
    pooler: int | None = None
    labels: int = 2
    reads: str = "one"
    vocabulary: int = 0

    @property
    def first_adapted(self) -> int:
        """The number of the first block with an adapter; the number of blocks where there is none."""
        return next((i for i, block in enumerate(self.blocks) if block.adapted), len(self.blocks))

    def shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the large products of a block."""
        C, F = self.width, self.inner
        return [(C, 3 * C), (C, C), (C, F), (F, C)]


def linear(
    inputs: int, pieces: Sequence[tuple[int, int]], rank: int = 0, *, train: bool = True, below: bool = True
) -> int:
    """One frozen layer with LoRA of rank `rank` (0: none).

    Args:
        inputs: n.
        pieces: (rows, outputs) of each part of the outputs: a layer that is not computed whole has several.
        rank: r.
        train: with the gradients.
        below: whether something trained stands below, so that the input's gradient is needed.
    """
    rows = max(rows for rows, _ in pieces)
    filled = sum(rows * outputs for rows, outputs in pieces)
    total = 2 * inputs * filled + 2 * rank * (rows * inputs + filled)
    if train and below:
        total += 2 * inputs * filled + 2 * rank * rows * inputs  # dY W and (dY B) A
    if train and rank:
        total += 2 * rank * (2 * filled + rows * inputs)  # dY B, gradient of B, gradient of A
    return total


def pairs(lengths: Iterable[int], *, causal: bool) -> int:
    """How many (token, token that it sees) there are in these texts."""
    return sum(n * (n + 1) // 2 if causal else n * n for n in lengths)


def head(model: Model, texts: int, *, train: bool = True) -> int:
    """Pooler and trained head: weights' and inputs' gradients are both needed."""
    below = model.first_adapted < len(model.blocks)
    total = 0
    if model.pooler is not None:
        total += linear(model.width, [(texts, model.width)], model.pooler, train=train, below=below)
    needs = below or bool(model.pooler)
    return total + 2 * texts * model.width * model.labels * (1 + ((1 + needs) if train else 0))


def step(
    model: Model,
    lengths: Sequence[int],
    *,
    train: bool = True,
    start: int = 0,
    labelled: tuple[int, int] | None = None,
) -> int:
    """A batch of texts: forward, and backward where `train`.

    Args:
        model: what is run.
        lengths: real tokens of each text.
        train: with the gradients.
        start: blocks below this one are not computed: their results are kept.
        labelled: tokens that the loss reads, and how many tokens they see together; None: as `Model.reads` says.
    """
    tokens, texts = sum(lengths), len(lengths)
    last = len(model.blocks) - 1
    total = head(model, texts, train=train) if model.labels else 0
    everything = tokens, pairs(lengths, causal=model.causal)
    read = everything if model.reads == "all" else (texts, tokens)  # one token of each text sees all of it
    if labelled is not None:
        read = labelled
        needs = train and model.first_adapted <= last
        total += 2 * read[0] * model.width * model.vocabulary * (2 if needs else 1)
    for i in range(start, len(model.blocks)):
        reads, seen = read if i == last else everything
        below = model.first_adapted < i
        total += _block(model, i, tokens, reads, seen, train=train, below=below)
    return total


def prefix(model: Model, sequences: Iterable[Sequence[int]]) -> int:
    """The blocks below the first adapted one, once for all texts; beginnings that texts share count once."""
    start = model.first_adapted
    if not model.causal:
        lengths = [len(ids) for ids in sequences]
        nodes, seen = sum(lengths), pairs(lengths, causal=False)
    else:
        nodes, seen = _tree(sequences)
    return sum(_block(model, i, nodes, nodes, seen, train=False, below=False) for i in range(start))


def _block(model: Model, number: int, tokens: int, reads: int, seen: int, *, train: bool, below: bool) -> int:
    """One block: keys and values of `tokens`, the rest for `reads` tokens that see `seen` keys together."""
    C, F, layers = model.width, model.inner, model.blocks[number]
    qkv = layers.rank(QKV)
    if layers.fused:
        total = linear(C, [(reads, C), (tokens, 2 * C)], qkv, train=train, below=below)
    else:
        total = sum(linear(C, [(rows, C)], qkv, train=train, below=below) for rows in (reads, tokens, tokens))
    below = below or bool(qkv)
    total += 4 * C * seen * (3 if train and below else 1)  # q k^T and p v; twice as much back
    for place, inputs, outputs in ((OUT, C, C), (UP, C, F), (DOWN, F, C)):
        rank = layers.rank(place)
        total += linear(inputs, [(reads, outputs)], rank, train=train, below=below)
        below = below or bool(rank)
    return total


def _tree(sequences: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Distinct beginnings of the texts, and the tokens that their last ones see together."""
    nodes = seen = 0
    before: Sequence[int] = ()
    for ids in sorted(tuple(int(i) for i in sequence) for sequence in sequences):
        shared = 0
        for a, b in zip(before, ids, strict=False):
            if a != b:
                break
            shared += 1
        nodes += len(ids) - shared
        seen += sum(range(shared + 1, len(ids) + 1))
        before = ids
    return nodes, seen
