"""From an adapter to a model of its own: the change added to the base's weights, stored as transformers stores models.

    W' = W + scaling · B A    summed in fp32, stored in the dtype that the base is stored in

The folder is loaded again and asked for the golden answers before it is put into place. This file joins adapters and
models; it knows no terminal.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from veneer.errors import BaseError, UserMistake
from veneer.files import refuse_existing, replacing_folder, write_text
from veneer.lora import merge_and_unload
from veneer.models import Base, load_base
from veneer.models.hashing import weight_files
from veneer.models.heads import Pooling, native_pooling
from veneer.models.load import first_line, quiet
from veneer.tasks.adapted import Adapted
from veneer.tasks.classification import Classification
from veneer.tasks.drift import Drift, Reference, classification_of
from veneer.tasks.encoding import encode_texts, special_ends
from veneer.tasks.leaving_pages import merged_page, merged_task_page
from veneer.tasks.loading import load
from veneer.tasks.plain import plain_logits
from veneer.tasks.replayed import Replay
from veneer.tasks.templates import Template

__all__ = ["Merged", "is_plain_classifier", "merge_adapter", "merge_into_base_", "write_tokenizer"]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_MODES: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}


@dataclass(frozen=True)
class Merged:
    """A full model that was written.

    Attributes:
        path: the folder.
        dtype: of the weights.
        pooling: what the head reads; None where there is no pooling: a head on each token, a language model.
        native: whether transformers' own class reads the same.
        drift: how far its answers are from the adapter's.
        size_bytes: of the weights' files.
        warnings: what to look at.
    """

    path: Path
    dtype: str
    pooling: Pooling | None
    native: bool
    drift: Drift
    size_bytes: int
    warnings: tuple[str, ...]


def merge_adapter(
    adapter: str | Path, out: str | Path, *, base: str | None = None, overwrite: bool = False
) -> Merged:
    """Write the base with the adapter in its weights, as a model that transformers loads by itself.

    Args:
        adapter: an adapter folder, ours or PEFT's.
        out: the folder to write: configuration with the labels, weights in the base's dtype, tokenizer, README.md.
        base: where the base lies, if not where the adapter says.
        overwrite: whether a model there may be replaced; never the base itself.

    Raises:
        UserMistake: something stands at `out`.
        DriftError: the model that was written, loaded again, does not answer as the adapter does. Nothing is left.
        AdapterError, BaseError: as for `load`; a merged weight is not finite.
    """
    adapter, out = Path(adapter), Path(out)
    refuse_existing(out, marker="config.json", what="a model", overwrite=overwrite)
    adapted = load(adapter, base=base, precision="fp32", mode="padded")
    _refuse_sources(out, adapter, adapted.base.folder)
    check = _ClassifierCheck.of(adapted) if is_plain_classifier(adapted) else _Check.of(adapted)
    dtype = _stored_dtype(adapted.base.folder)
    merge_into_base_(adapted, dtype)
    pooling = _pooling_of(adapted)
    native = pooling is None or native_pooling(adapted.model) == pooling
    with replacing_folder(out) as folder:
        _write(folder, adapted, pooling, native)
        drift = check.drift(folder, half=dtype in (torch.bfloat16, torch.float16))
        warnings = _warnings(pooling, native, drift)
        write_text(folder / "README.md", _page(adapter.name, adapted, dtype, drift, native))
        size = sum(file.stat().st_size for file in weight_files(folder))
    return Merged(out, _name(dtype), pooling, native, drift, size, warnings)


def merge_into_base_(adapted: Adapted, dtype: torch.dtype = torch.float32) -> None:
    """Put the adapter into the weights of its model for good, in place, and cast them.

    A weight that was tied to another one and is not any more (word embeddings with an adapter) is stored apart.

    Raises:
        BaseError: a weight is not finite in `dtype`.
    """
    model: Any = adapted.model
    merge_and_unload(model, untie=True)
    if getattr(model.config, "tie_word_embeddings", False) and not _tied(model):
        model.config.tie_word_embeddings = False
    for name, parameter in model.named_parameters():
        # a tensor of its own: the engine lays the weights of several layers into one block
        parameter.data = parameter.data.to(dtype, copy=True).contiguous()
        if not bool(torch.isfinite(parameter).all()):
            raise BaseError(
                f"{name} would not be finite in {_name(dtype)}, the dtype that {adapted.base.name} is stored in. "
                "Nothing was written. Store the base in float32 and merge into that."
            )


def _tied(model: Any) -> bool:
    words, output = model.get_input_embeddings(), model.get_output_embeddings()
    return output is None or output.weight is words.weight


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that most of a model folder's weights have."""
    sizes: Counter[torch.dtype] = Counter()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(key)
                if part.get_dtype() in _DTYPES:
                    sizes[_DTYPES[part.get_dtype()]] += torch.Size(part.get_shape()).numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _refuse_sources(out: Path, *sources: Path) -> None:
    """Nothing that the model is made of may be replaced by it."""
    place = out.resolve()
    for source in sources:
        if place == source.resolve() or place in source.resolve().parents:
            raise UserMistake(
                f"{out} holds {source}, which the model is made of. Choose another place for it."
            )


def _write(folder: Path, adapted: Adapted, pooling: Pooling | None, native: bool) -> None:
    model: Any = adapted.model
    if isinstance(adapted.task, Classification):
        several = adapted.task.multi_label
        model.config.problem_type = "multi_label_classification" if several else "single_label_classification"
    try:
        with quiet():
            model.save_pretrained(folder)
    except ValueError as error:  # transformers checks the settings of generation when it writes them
        raise BaseError(
            f"transformers does not write this model: {first_line(error)}. Nothing was written. Mend "
            f"generation_config.json in {adapted.base.folder}."
        ) from error
    if adapted.base.spec.form == "causal":
        write_writing_tokenizer(folder, adapted)
    else:
        write_tokenizer(folder, adapted)
    if not native:
        width = int(model.config.get_text_config().hidden_size)
        modes = {mode: name == pooling for name, mode in _MODES.items()}
        sidecar = {"word_embedding_dimension": width, **modes}
        write_text(folder / "1_Pooling" / "config.json", json.dumps(sidecar, indent=2) + "\n")


def write_writing_tokenizer(folder: Path, adapted: Adapted) -> None:
    """The base's tokenizer with the adapter's template as its chat template, padding on the left."""
    tokenizer: Any = adapted.base.tokenizer
    template: Template = adapted.task.template  # type: ignore[attr-defined]
    if template.source:
        begins = not template.writes_specials and special_ends(tokenizer)[0] > 0
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + template.source
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # an answer goes on behind the last token
    tokenizer.save_pretrained(folder)


def write_tokenizer(folder: Path, adapted: Adapted) -> None:
    """The adapter's tokenizer, which cuts texts where the adapter cuts them, and can pad."""
    tokenizer: Any = adapted.base.tokenizer
    tokenizer.model_max_length = adapted.max_length
    if tokenizer.pad_token is None:  # GPT-2: what stands under the mask is never read
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class _ClassifierCheck:
    """What a classifier answered before it was merged, to be asked again as a stranger would."""

    adapted: Adapted
    task: Classification
    reference: Reference

    @classmethod
    def of(cls, adapted: Adapted) -> _ClassifierCheck:
        """Of an adapter that is not merged yet; `UserMistake` where its task is no classification."""
        return cls(adapted, classification_of(adapted, "veneer merge"), Reference.of(adapted))

    def drift(self, folder: Path, *, half: bool) -> Drift:
        """By transformers' own forward where the pooling is its own."""
        reference = self.reference
        again = _loaded(folder, self.adapted)
        reference.check_tokens(
            encode_texts(again.tokenizer, reference.texts, again.max_length), what="The merged model"
        )
        logits = plain_logits(again.model, again.pooling, reference.ids)
        return reference.drift(logits, half=half, what="The merged model")


@dataclass(frozen=True)
class _Check:
    """The same for every other task: its own numbers on the padded computation."""

    adapted: Adapted
    replay: Replay

    @classmethod
    def of(cls, adapted: Adapted) -> _Check:
        """Of an adapter that is not merged yet."""
        return cls(adapted, Replay.of(adapted))

    def drift(self, folder: Path, *, half: bool) -> Drift:
        """By the task's own computation on the folder, as it is loaded again; `half`: its weights were rounded."""
        return self.replay.drift(_loaded(folder, self.adapted), half=half, what="The merged model")


def _loaded(folder: Path, adapted: Adapted) -> Base:
    """The folder as a stranger loads it."""
    again = load_base(str(folder), head=adapted.task.head)
    wanted = adapted.base.max_length if adapted.base.spec.form == "causal" else adapted.max_length
    pooling = _pooling_of(adapted) or again.pooling
    if again.pooling != pooling or again.max_length != wanted:
        raise BaseError(
            f"The merged model would be read by {again.pooling} pooling, {again.max_length} tokens; expected "
            f"{pooling}, {wanted}. Nothing was written. Please report it with the base's name."
        )
    if again.new_parameters:
        raise BaseError(
            f"The merged model lacks {', '.join(sorted(again.new_parameters)[:3])}. Nothing was written. Please "
            "report it with the base's name."
        )
    return again


def _pooling_of(adapted: Adapted) -> Pooling | None:
    """What a head on whole texts reads; None for the other heads."""
    task: Any = adapted.task
    pooling: Pooling | None = task.pooling if task.head.form == "sequence" else None
    return pooling


def is_plain_classifier(adapted: Adapted) -> bool:
    """Whether one text gets labels, so that transformers' own forward and a few lines of code say all."""
    return isinstance(adapted.task, Classification) and adapted.task.inputs == ("text",)


def _page(name: str, adapted: Adapted, dtype: torch.dtype, drift: Drift, native: bool) -> str:
    if is_plain_classifier(adapted):
        assert isinstance(adapted.task, Classification)
        return merged_page(name, adapted, adapted.task, dtype, drift, native)
    return merged_task_page(name, adapted, dtype, drift, native)


def _warnings(pooling: Pooling | None, native: bool, drift: Drift) -> tuple[str, ...]:
    found = []
    if not native:
        found.append(
            f"this model reads the {pooling} of the tokens' states, and transformers' own class reads another one: "
            "AutoModelForSequenceClassification alone gives other answers. Veneer reads 1_Pooling/config.json; "
            "README.md has the code for transformers."
        )
    if drift.changed:
        found.append(
            f"{drift.changed} of {drift.texts} golden inputs get another answer: rounding the weights moved them over "
            "the edge."
        )
    return tuple(found)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
