"""`veneer extract`: two full models on disk -> the LoRA adapter that is nearest to their difference.

    found = extract_folders(base, tuned, r=16, out=Path("adapters/tuned"))

The mathematics is in `veneer.lora.difference` and `veneer.lora.extract`; here the models are loaded, the rank is
chosen, and PEFT's two files, the errors and the picture are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from veneer.adapter import refuse_existing
from veneer.errors import BaseError, ConfigError
from veneer.evaluation.spectrum import spectrum_picture
from veneer.lora import TASK_TYPES
from veneer.lora.difference import Difference, Unrepresented, difference
from veneer.lora.extract import adapter_of
from veneer.models.load import first_line, quiet
from veneer.models.locate import locate
from veneer.naming import setting
from veneer.recipes.storing import write_peft_adapter

__all__ = ["Extraction", "extract_folders"]

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "LMHeadModel": "CAUSAL_LM",
    "ForCausalLM": "CAUSAL_LM",
}
_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@dataclass(frozen=True)
class Extraction:
    """What was found.

    Attributes:
        r: the rank.
        error: overall, ‖D - BA‖ / ‖D‖.
        layers: name -> relative size of its difference, full rank, and its error at each of `ranks`.
        ranks: that were looked at.
        errors: the overall error at each of them.
        unrepresented: what else differs, and no low-rank pair carries.
        saved_whole: modules stored whole: the head, and what the base does not have.
        folder: of the adapter, or None.
    """

    r: int
    error: float
    layers: Mapping[str, Mapping[str, Any]]
    ranks: tuple[int, ...]
    errors: tuple[float, ...]
    unrepresented: tuple[Unrepresented, ...]
    saved_whole: tuple[str, ...]
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        values = vars(self) | {
            "folder": None if self.folder is None else str(self.folder),
            "unrepresented": [vars(each) for each in self.unrepresented],
            "layers": {name: dict(facts) for name, facts in self.layers.items()},
        }
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def extract_folders(
    base: str,
    tuned: str,
    *,
    r: int | None = None,
    max_error: float | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Extraction:
    """Take apart what differs between two models and, with `out`, write the adapter there.

    Args:
        base: hub name or folder.
        tuned: hub name or folder of the model that was tuned from it.
        r: the rank; or
        max_error: take the lowest rank whose overall error is at most this, in [0, 1].
        out: the adapter's folder: PEFT's two files, errors.json, singular_values.png.
        overwrite: replace an adapter that stands there.

    Raises:
        ConfigError: not exactly one of r and max_error.
        BaseError: a model can't be had, or the two don't belong together; every fault is listed.
        TargetError: nothing that an adapter can carry differs.
        UserMistake: `out` holds something.
    """
    if (r is None) == (max_error is None):
        raise ConfigError(
            f"extract: got {r=} and {max_error=}. Give one of the two: {setting('call.r', 'N')}, or "
            f"{setting('call.max_error', 'X')}."
        )
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    plain, changed, task = _load_pair(base, tuned)
    heads = _heads(plain, changed, task)
    found = difference(plain, changed, modules_to_save=heads)
    chosen = found.lowest_r(max_error) if r is None and max_error is not None else int(r or 1)
    made = adapter_of(found, chosen)
    ranks = _ranks(found, chosen)
    errors = tuple(found.error(rank) for rank in ranks)
    layers = _layer_facts(found, ranks)
    result = Extraction(chosen, made.error, layers, ranks, errors, made.unrepresented, heads, out)
    if out is not None:
        values = {layer.name: layer.singular_values.numpy() for layer in found.layers}
        extra = {
            "singular_values.png": spectrum_picture(values, ranks, errors, chosen=chosen),
            "errors.json": json.dumps(result.to_json(), indent=2).encode() + b"\n",
        }
        write_peft_adapter(
            out,
            plain,
            made.config,
            made.state_dict(),
            base_name=locate(base).name,
            task_type=task,
            extra_files=extra,
        )
    return result


def _load_pair(base: str, tuned: str) -> tuple[nn.Module, nn.Module, str | None]:
    """Both models as the tuned one's class, and PEFT's word for what that is for."""
    import torch
    import transformers

    folder = locate(tuned).folder
    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, transformers.AutoModel)
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
    assert task is None or task in TASK_TYPES
    models = []
    for which, place in ((base, locate(base).folder), (tuned, folder)):
        options = {"num_labels": config.num_labels} if which is base else {}
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # of a head that the base lacks
                model, info = kind.from_pretrained(
                    place, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
                    ignore_mismatched_sizes=True, **options,
                )  # fmt: skip
        except (OSError, ValueError) as error:
            raise BaseError(f"{which} can't be loaded: {first_line(error)}") from error
        model.fresh = sorted(set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]})
        models.append(model)
    return models[0], models[1], task


def _heads(plain: Any, changed: Any, task: str | None) -> tuple[str, ...]:
    """Modules that are stored whole: what the base does not have, and, as in PEFT, the head of a classifier."""
    if changed.fresh:
        raise BaseError(
            f"The tuned model lacks tensors of its own: {', '.join(changed.fresh[:5])}. It is damaged."
        )
    outside = [
        n for n, child in plain.named_children() if n != plain.base_model_prefix and list(child.parameters())
    ]
    if task not in _WITH_HEAD:
        outside = [n for n in outside if any(key.startswith(f"{n}.") for key in plain.fresh)]
    left = [key for key in plain.fresh if not key.startswith(tuple(f"{head}." for head in outside))]
    if left:
        raise BaseError(
            f"The base lacks tensors that the tuned model has: {', '.join(left[:5])}. Give the base that it was "
            "tuned from."
        )
    return tuple(outside)


def _ranks(found: Difference, chosen: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to the full rank, and the chosen one."""
    highest = max((layer.full_rank for layer in found.layers), default=1)
    powers = {2**i for i in range(highest.bit_length()) if 2**i <= highest}
    return tuple(sorted(powers | {highest, min(chosen, highest)}))


def _layer_facts(found: Difference, ranks: Sequence[int]) -> dict[str, dict[str, Any]]:
    errors = found.errors(ranks)
    return {
        layer.name: {
            "relative_change": layer.norm / max(layer.base_norm, 1e-30),
            "full_rank": layer.full_rank,
            "errors": errors[layer.name],
        }
        for layer in found.layers
    }
