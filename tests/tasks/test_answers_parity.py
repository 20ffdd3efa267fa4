"""The loss and the gradients of answers, packed, against transformers' own class with PEFT, in float32.

Window by window, transformers' loss is the softmax over the window's own tokens, as ours; padded, its softmax runs over
the padding too, so that there the padding's logits are masked in the oracle. PEFT's model is called inside of its
outermost class, whose forward drops token types (see the last test). Tolerances: 2e-5 of the largest value, for sums of
a few hundred terms in another order.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from veneer.engine import Runner, pack
from veneer.lora import LoraConfig, adapter_parameters, attach, load_adapter_state_dict
from veneer.tasks.answers import Answers

PAD, VOCABULARY = 0, 60
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "num_labels": 2}
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": _COMMON | _BERT | {"max_position_embeddings": 64, "type_vocab_size": 2},
    "Roberta": _COMMON | _BERT | {"max_position_embeddings": 64, "type_vocab_size": 1},
    "DistilBert": _COMMON | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "GPT2": _COMMON
    | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1},
}
LENGTHS = (9, 23, 9, 40, 1)


def model_of(name: str) -> Any:
    """A random model in eval mode; norms and biases are drawn too."""
    config = getattr(transformers, f"{name}Config")(**FAMILIES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForQuestionAnswering")(config)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.2)
    return model.eval()


class Batch:
    """Windows with token types and targets."""

    def __init__(self, types: bool) -> None:
        draw = np.random.default_rng(0)
        self.ids = [draw.integers(2, VOCABULARY, n) for n in LENGTHS]
        self.types = [(np.arange(n) > n // 3).astype(np.int64) for n in LENGTHS] if types else None
        self.targets = np.array([sorted(draw.integers(0, n, 2)) for n in LENGTHS])

    def padded(self, rows: list[int]) -> dict[str, Tensor]:
        """As a model of transformers takes them."""
        longest = max(len(self.ids[row]) for row in rows)
        ids = torch.full((len(rows), longest), PAD)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for place, row in enumerate(rows):
            n = len(self.ids[row])
            ids[place, :n] = torch.from_numpy(self.ids[row])
            mask[place, :n] = 1
            if self.types is not None:
                types[place, :n] = torch.from_numpy(self.types[row])
        found = {"input_ids": ids, "attention_mask": mask}
        return found | ({"token_type_ids": types} if self.types is not None else {})


def trained(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by a name that both libraries share."""
    model.zero_grad()
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            short = name.removeprefix("base_model.model.")
            for part in ("modules_to_save.default.", ".default", "adapters.", "base_layer."):
                short = short.replace(part, "")
            found[short] = parameter.grad.clone()
    return found


def peft_model(plain: nn.Module) -> Any:
    """PEFT on a copy, with B drawn."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        exclude_modules=["qa_outputs"],
        modules_to_save=["qa_outputs"],
        task_type="QUESTION_ANS",
    )
    theirs = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0.0, 0.2)
    return theirs


def ours_with(plain: nn.Module, theirs: Any) -> None:
    """The same adapter by us."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        exclude_modules=("qa_outputs",),
        modules_to_save=("qa_outputs",),
    )
    attach(plain, config, seed=0)
    load_adapter_state_dict(plain, peft.get_peft_model_state_dict(theirs))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["one by one", "padded"])
def test_loss_and_gradients_are_transformers_and_pefts(name: str, form: str) -> None:
    plain = model_of(name)
    theirs = peft_model(plain)
    ours_with(plain, theirs)
    batch = Batch(types=name == "Bert")
    targets = torch.from_numpy(batch.targets)
    everything = list(range(len(LENGTHS)))
    if form == "one by one":
        losses = [
            theirs.base_model(
                **batch.padded([row]), start_positions=targets[row, :1], end_positions=targets[row, 1:]
            ).loss
            for row in everything
        ]
        expected = torch.stack(losses).mean()
    else:
        inputs = batch.padded(everything)
        out = theirs.base_model(**inputs)
        outside = inputs["attention_mask"] == 0
        expected = sum(  # type: ignore[assignment]
            nn.functional.cross_entropy(logits.masked_fill(outside, -torch.inf), targets[:, k]) / 2
            for k, logits in enumerate((out.start_logits, out.end_logits))
        )
    packed = pack(batch.ids, batch.types)
    task, runner = Answers(), Runner.of(plain, mode="packed")
    states = runner.hidden_states(packed, task.reads(packed.layout))
    outputs = task.outputs(plain, states, packed.layout)
    loss = task.loss(outputs, task.collate(batch.targets[list(packed.order)]), packed.layout)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-6)
    found, wanted = trained(plain, loss), trained(theirs, expected)
    compared = 0
    ours = dict(adapter_parameters(plain))
    for key, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[_ours(key, found)], gradient, rtol=0, atol=2e-5 * max(scale, 1e-2))
        compared += 1
    assert compared == len(ours) > 8


def _ours(key: str, found: dict[str, Tensor]) -> str:
    """Our name of a tensor of PEFT's."""
    if key in found:
        return key
    layer, _, tensor = key.removesuffix(".weight").rpartition(".")
    matching = [name for name in found if name.startswith(f"{layer}.") and tensor in name]
    assert len(matching) == 1, (key, matching, list(found))
    return matching[0]


def test_pefts_outermost_class_drops_token_types() -> None:
    """The reason why `Answers.token_types` is off for PEFT's folders; when this fails, PEFT has mended it."""
    theirs = peft_model(model_of("Bert"))
    inputs = Batch(types=True).padded([1])
    without = {key: value for key, value in inputs.items() if key != "token_type_ids"}
    with torch.no_grad():
        dropped, plain, kept = theirs(**inputs), theirs(**without), theirs.base_model(**inputs)
    torch.testing.assert_close(dropped.start_logits, plain.start_logits, rtol=0, atol=0)
    assert float((kept.start_logits - plain.start_logits).abs().max()) > 1e-4
