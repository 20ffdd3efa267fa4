"""What is measured: a workload is a model, an adapter, texts, and the settings that both sides share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks import floor

__all__ = ["WORKLOADS", "Base", "Workload", "default_names"]

ALL = (floor.QKV, floor.OUT, floor.UP, floor.DOWN)


@dataclass(frozen=True)
class Base:
    """A model without its weights.

    Attributes:
        name: "gpt2", "minilm"; the tiny ones are for tests.
        kind: transformers' model type.
        layers, width, heads, inner: sizes.
        vocabulary, positions: rows of the embeddings.
        random: random weights from a seed, not the published ones.
        writes: it foretells tokens (a causal language model), and has no classifier.
    """

    name: str
    kind: Literal["gpt2", "bert"]
    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    random: bool = True
    writes: bool = False


GPT2 = Base("gpt2", "gpt2", 12, 768, 12, 3072, 50257, 1024)
GPT2_LM = replace(GPT2, name="gpt2-lm", writes=True)
MINILM = Base("minilm", "bert", 6, 384, 12, 1536, 30522, 512, random=False)
TINY_GPT2 = Base("tiny-gpt2", "gpt2", 3, 32, 2, 64, 300, 64)
TINY_LM = replace(TINY_GPT2, name="tiny-lm", writes=True)
TINY_BERT = Base("tiny-bert", "bert", 2, 32, 2, 64, 300, 64)


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        name: on the command line and in the table.
        title: for people.
        base: the model.
        data: "spam" (the recipe's 1,045 training texts), "sst2" (80 % of GLUE's training set), "short" (1,000
            messages), "instruction" (rows of an instruction file, joined end to end up to `fixed_length` tokens),
            "made-up" (random token ids, for tests).
        rank, alpha: of LoRA.
        places: which layers of a block are adapted ("qkv", "out", "up", "down").
        last_blocks: only in so many blocks from the top; 0: in all.
        batch_size: texts.
        fixed_length: tokens that baseline (a) pads to; longer texts are cut, for all sides.
        learning_rate, weight_decay: of AdamW.
        epochs: the figure is that of a whole run of so many epochs; 0: texts a second.
        train: or else prediction.
    """

    name: str
    title: str
    base: Base
    data: Literal["spam", "sst2", "short", "instruction", "made-up"]
    rank: int = 16
    alpha: int = 16
    places: tuple[str, ...] = ALL
    last_blocks: int = 0
    batch_size: int = 8
    fixed_length: int = 128
    learning_rate: float = 5e-5
    weight_decay: float = 0.1
    epochs: int = 0
    train: bool = True

    @property
    def targets(self) -> str | list[str]:
        """`target_modules`, the same for PEFT and for us: full names, or an expression."""
        if self.base.kind == "bert":
            assert self.places == ALL
            assert not self.last_blocks
            return "all-linear"
        names = {
            floor.QKV: "attn.c_attn",
            floor.OUT: "attn.c_proj",
            floor.UP: "mlp.c_fc",
            floor.DOWN: "mlp.c_proj",
        }
        numbers = range(self.base.layers - (self.last_blocks or self.base.layers), self.base.layers)
        return [f"transformer.h.{i}.{names[place]}" for i in numbers for place in self.places]

    @property
    def floor_model(self) -> floor.Model:
        """The same for the count of operations."""
        gpt2 = self.base.kind == "gpt2"
        first = self.base.layers - (self.last_blocks or self.base.layers)
        ranks = dict.fromkeys(self.places, self.rank)
        return floor.Model(
            width=self.base.width,
            inner=self.base.inner,
            causal=gpt2,
            blocks=[floor.Layers(ranks if i >= first else {}, fused=gpt2) for i in range(self.base.layers)],
            pooler=None if gpt2 else self.rank,
            labels=0 if self.base.writes else 2,
            vocabulary=self.base.vocabulary if self.base.writes else 0,
        )


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("spam-gpt2", "spam, GPT-2, LoRA r 16 on every linear layer", GPT2, "spam", fixed_length=120),
        Workload(
            "sst2-gpt2",
            "SST-2, GPT-2, last two c_attn r 1, three epochs whole",
            GPT2,
            "sst2",
            rank=1,
            alpha=4,
            places=(floor.QKV,),
            last_blocks=2,
            batch_size=16,
            weight_decay=0.01,
            epochs=3,
        ),
        Workload(
            "minilm-spam",
            "spam, MiniLM, LoRA r 16 on every linear layer",
            MINILM,
            "spam",
            batch_size=16,
            learning_rate=5e-4,
            weight_decay=0.01,
        ),
        Workload(
            "minilm-sst2",
            "SST-2, MiniLM, LoRA r 16 on every linear layer",
            MINILM,
            "sst2",
            batch_size=32,
            learning_rate=5e-4,
            weight_decay=0.01,
        ),
        Workload(
            "instruction-gpt2",
            "instruction rows joined to texts of up to 512 tokens, GPT-2, loss on the answers",
            GPT2_LM,
            "instruction",
            batch_size=4,
            fixed_length=512,
        ),
        Workload(
            "predict-minilm",
            "prediction, 1,000 short texts, MiniLM",
            MINILM,
            "short",
            batch_size=32,
            train=False,
        ),
        Workload(
            "predict-gpt2", "prediction, 1,000 short texts, GPT-2", GPT2, "short", batch_size=32, train=False
        ),
        Workload("tiny-gpt2", "tiny GPT-2", TINY_GPT2, "made-up", rank=4, fixed_length=32),
        Workload(
            "tiny-prefix",
            "tiny GPT-2, the last block",
            TINY_GPT2,
            "made-up",
            rank=2,
            places=(floor.QKV,),
            last_blocks=1,
            fixed_length=32,
            epochs=2,
        ),
        Workload("tiny-instruction", "tiny GPT-2 that writes", TINY_LM, "made-up", rank=4, fixed_length=32),
        Workload("tiny-predict", "tiny BERT", TINY_BERT, "made-up", rank=4, fixed_length=32, train=False),
    )
}


def default_names() -> list[str]:
    """All workloads but the tests' tiny ones."""
    return [name for name in WORKLOADS if not name.startswith("tiny-")]
