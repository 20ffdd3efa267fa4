"""What every side of a workload reads: the base with its head, the adapter's first weights, token ids and labels.

They are made once for a run, in a temporary folder: same weights, same data, for all.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.workloads import Base, Workload
from veneer.data.ragged import Ragged
from veneer.models.forms import HeadSpec, sequence_head
from veneer.tasks.rendered import NOT_READ

__all__ = ["Materials", "MissingMaterialError", "head_of", "make", "shortened"]

SEED = 123
LABELS = ("0", "1")


class MissingMaterialError(Exception):
    """A file that the workload needs is not on this machine; the message names it."""


@dataclass(frozen=True)
class Materials:
    """Where the sides find what they need.

    Attributes:
        base: folder of the model and its tokenizer.
        adapter: safetensors with the adapter's first weights, under PEFT's names.
        texts: npz of "ids" (T,), "offsets" (N + 1,), "labels" (N,); of texts to be foretold "labels" (T,): at each
            token the one that comes next where the loss reads it, else -100.
        targets: full names of the adapted layers.
        head: names of the modules that are trained whole.
    """

    base: str
    adapter: str
    texts: str
    targets: tuple[str, ...]
    head: tuple[str, ...]

    def read_texts(self) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """ids, offsets, labels."""
        with np.load(self.texts) as stored:
            return stored["ids"], stored["offsets"], stored["labels"]

    def to_json(self) -> dict[str, Any]:
        """For the sides' processes."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Materials:
        """The opposite of `to_json`."""
        return cls(**given | {"targets": tuple(given["targets"]), "head": tuple(given["head"])})


def make(workload: Workload, folder: Path, data: Path, *, limit: int | None = None) -> Materials:
    """Make a workload's materials below `folder`; bases are made once for all workloads.

    Args:
        workload: whose.
        folder: temporary.
        data: the data sets (see `Workload.data`).
        limit: use only so many texts.

    Raises:
        MissingMaterialError: a data set, or the package with MiniLM's weights, is not here.
    """
    base = folder / "bases" / workload.base.name
    if not base.is_dir():
        _make_base(workload.base, base, data)
    texts = folder / f"{workload.name}.npz"
    ids, labels = _token_ids(workload, base, data)
    ids, labels = ids[:limit], labels[:limit]
    offsets = np.cumsum([0, *map(len, ids)])
    flat = np.concatenate(labels) if workload.base.writes else np.asarray(labels)
    np.savez(texts, ids=np.concatenate(ids).astype(np.int32), offsets=offsets, labels=flat)
    adapter = folder / f"{workload.name}.safetensors"
    targets, head = _make_adapter(workload, base, adapter)
    return Materials(str(base), str(adapter), str(texts), targets, head)


def shortened(materials: Materials, texts: int) -> Materials:
    """The same with the first texts alone; nothing is changed where there are no more."""
    ids, offsets, labels = materials.read_texts()
    if len(offsets) - 1 <= texts:
        return materials
    end = int(offsets[texts])
    path = f"{materials.texts.removesuffix('.npz')}-{texts}.npz"
    own = labels[:end] if len(labels) == len(ids) else labels[:texts]
    np.savez(path, ids=ids[:end], offsets=offsets[: texts + 1], labels=own)
    return replace(materials, texts=path)


def head_of(workload: Workload) -> HeadSpec:
    """The head that the workload's base carries."""
    return HeadSpec("causal") if workload.base.writes else sequence_head(LABELS)


def _make_base(base: Base, folder: Path, data: Path) -> None:
    if base.kind == "bert" and not base.random:
        _copy_minilm(folder)
        return
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2ForSequenceClassification,
        GPT2LMHeadModel,
    )

    kind: Any
    if base.kind == "gpt2":
        config: Any = GPT2Config(
            vocab_size=base.vocabulary,
            n_embd=base.width,
            n_layer=base.layers,
            n_head=base.heads,
            n_inner=base.inner,
            n_positions=base.positions,
            pad_token_id=base.vocabulary - 1,
            eos_token_id=base.vocabulary - 1,
            bos_token_id=base.vocabulary - 1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            num_labels=len(LABELS),
        )
        kind = GPT2LMHeadModel if base.writes else GPT2ForSequenceClassification
    else:
        config = BertConfig(
            vocab_size=base.vocabulary,
            hidden_size=base.width,
            num_hidden_layers=base.layers,
            num_attention_heads=base.heads,
            intermediate_size=base.inner,
            max_position_embeddings=base.positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=len(LABELS),
        )
        kind = BertForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = kind(config)
    folder.mkdir(parents=True)
    try:
        _write_tokenizer(base, folder, data)
        model.save_pretrained(folder)
    except MissingMaterialError:
        shutil.rmtree(folder)
        raise


def _copy_minilm(folder: Path) -> None:
    """The packaged weights with a head; no dropout, as the other side has none."""
    from veneer.errors import VeneerError
    from veneer.models import load_base

    try:
        found = load_base(labels=LABELS, seed=SEED)
    except VeneerError as error:
        raise MissingMaterialError(str(error)) from error
    model: Any = found.model
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    found.tokenizer.save_pretrained(folder)


def _write_tokenizer(base: Base, folder: Path, data: Path) -> None:
    if base.name.startswith("gpt2"):
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(_existing(data / "gpt2_tokenizer" / name), folder / name)
        settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": base.positions}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(base.vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="w0", unk_token="w0", model_max_length=base.positions
    ).save_pretrained(folder)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingMaterialError(f"{path} is not on this machine (--data names the folder of data sets)")
    return path


def _token_ids(workload: Workload, base: Path, data: Path) -> tuple[list[NDArray[np.int64]], list[Any]]:
    """Token ids, and a label for each text or for each token."""
    if workload.data == "made-up":
        draw = np.random.default_rng(SEED)
        lengths = draw.integers(3, workload.fixed_length + 1, 64)
        beginnings = [draw.integers(1, workload.base.vocabulary, workload.fixed_length) for _ in range(4)]
        made = [
            np.concatenate([beginnings[n % 4][: n // 2], draw.integers(1, 290, n - n // 2)]) for n in lengths
        ]
        if workload.base.writes:
            return made, [np.append(row[1:], NOT_READ) for row in made]
        return made, [int(n) % 2 for n in lengths]
    if workload.data == "instruction":
        return _joined_rows(base, data, workload.fixed_length)
    texts, labels = _rows(workload, data)
    from veneer.models.load import load_tokenizer
    from veneer.tasks.encoding import encode_texts

    encoded = encode_texts(load_tokenizer(base), texts, workload.fixed_length)
    return [np.asarray(row, np.int64) for row in encoded], labels


def _joined_rows(
    base: Path, data: Path, length: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Rows of the instruction file, as `veneer train` renders them, joined to texts of up to `length` tokens."""
    from veneer.data.config import DataConfig
    from veneer.data.sources import Source
    from veneer.models.load import load_tokenizer
    from veneer.tasks.instruction_data import InstructionOptions, prepare
    from veneer.tasks.instructions import Instructions
    from veneer.tasks.templates import ALPACA, Template

    file = _existing(data / "instruction" / "instruction-data.json")
    config = DataConfig.parse({"source": str(file), "validation_fraction": 0, "test_fraction": 0})
    rows = prepare(Source(config), InstructionOptions()).train
    encoded = Instructions(Template("alpaca", ALPACA)).encode(rows, load_tokenizer(base), length)
    assert isinstance(encoded.targets, Ragged)
    ids: list[list[int]] = [[]]
    labels: list[list[int]] = [[]]
    for row in range(len(encoded)):
        if len(ids[-1]) + len(encoded[row]) > length:
            ids.append([])
            labels.append([])
        ids[-1] += encoded[row].tolist()
        labels[-1] += encoded.targets[row].tolist()
    return [np.asarray(text) for text in ids], [np.asarray(text) for text in labels]


def _rows(workload: Workload, data: Path) -> tuple[list[str], list[int]]:
    """Texts and label numbers."""
    from veneer.data.config import DataConfig
    from veneer.data.prepare import prepare

    if workload.data == "sst2":
        folder = _existing(data / "sst2")
        config = DataConfig(
            source=f"sst2:{folder}",
            validation_fraction=0.2,
            duplicates="ignore",
            seed=SEED,
        )
        train = prepare(config).train
        return train.texts(), [int(label) for label in train.labels]
    folder = _existing(data / "sms_spam")
    prepared = prepare(DataConfig(source=f"sms-spam:{folder}", variant="balanced"))
    if workload.data == "spam":
        return prepared.train.texts(), [int(label) for label in prepared.train.labels]
    splits = (prepared.test, prepared.train)
    texts = [text for split in splits for text in split.texts()][:1000]
    return texts, [int(label) for split in splits for label in split.labels][:1000]


def _make_adapter(workload: Workload, base: Path, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the adapter's first weights, and say what is adapted."""
    from safetensors.torch import save_file

    from veneer.lora import LoraConfig, adapter_state_dict, attach
    from veneer.models import load_base

    found = load_base(str(base), head=head_of(workload), seed=SEED)
    config = LoraConfig(
        r=workload.rank,
        lora_alpha=workload.alpha,
        target_modules=workload.targets,
        modules_to_save=found.head or None,
    )
    report = attach(found.model, config, seed=SEED)
    state = {name: tensor.detach().clone() for name, tensor in adapter_state_dict(found.model).items()}
    save_file(state, path)
    return tuple(target.name for target in report.resolution.targets), found.head
