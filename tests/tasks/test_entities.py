"""Entities against transformers + PEFT, padded: the same loss, the same gradients, the same labels.

Tolerances: fp32 sums in another order, 1e-5 of the largest gradient.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from entity_cases import FAMILIES, entity_base, write_conll
from tokenizers import Tokenizer, models

from veneer.data.choices import Notes
from veneer.data.entities import EntityRows, read_entities
from veneer.data.ragged import Ragged
from veneer.data.tables import read_table
from veneer.errors import DataError
from veneer.lora import LoraConfig, adapter_parameters, adapter_state_dict
from veneer.models import load_base
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.base import packed_rows
from veneer.tasks.entities import KIND, Entities
from veneer.tasks.word_tokens import READ, UNREAD

LABELS = ("O", "B-loc", "I-loc", "B-per", "I-per")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: entity_base(folder / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> EntityRows:
    path = write_conll(tmp_path_factory.mktemp("data") / "small.conll", 10)
    return read_entities(read_table(path), Notes())


def adapted_on(base: Path, *, mode: Any = "packed") -> Adapted:
    """An adapter whose B is not zero, so that every gradient is alive."""
    task = Entities(LABELS, "edges")
    found = load_base(str(base), head=task.head, seed=0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=found.head)
    adapted = adapt(found, task, config, mode=mode, precision="fp32", seed=0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapter_parameters(adapted.model):
        if "lora_B" in name:
            with torch.no_grad():
                parameter.normal_(0.0, 0.2, generator=generator)
    return adapted


def peft_model(adapted: Adapted) -> Any:
    """The same adapter in PEFT, on transformers' own class."""
    base = transformers.AutoModelForTokenClassification.from_pretrained(adapted.base.folder, num_labels=5)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        modules_to_save=list(adapted.base.head),
        task_type="TOKEN_CLS",
    )
    model = peft.get_peft_model(base, config).eval()
    told = peft.set_peft_model_state_dict(model, adapter_state_dict(adapted.model))
    assert not told.unexpected_keys
    return model


def padded(encoded: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels (M, L)."""
    longest = max(encoded.lengths)
    ids = torch.zeros(len(encoded), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, UNREAD)
    for row in range(len(encoded)):
        n = int(encoded.lengths[row])
        ids[row, :n] = torch.from_numpy(encoded[row].astype(np.int64))
        labels[row, :n] = torch.from_numpy(encoded.targets[row])
        mask[row, :n] = 1
    return ids, mask, labels


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_pefts(bases: dict[str, Path], rows: EntityRows, family: str) -> None:
    adapted = adapted_on(bases[family])
    assert adapted.runner.mode == "packed"
    encoded = adapted.task.encode(rows, adapted.base.tokenizer, adapted.max_length)
    batch = packed_rows(encoded, range(len(encoded)))
    targets = adapted.task.collate(encoded.targets[np.array(batch.order)])
    loss = adapted.task.loss(adapted.outputs(batch, targets=targets), targets, batch.layout)
    loss.backward()
    theirs = peft_model(adapted)
    ids, mask, labels = padded(encoded)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    ours = gradients_of(adapted)
    wanted = {
        name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.grad is not None
    }
    assert set(ours) == set(wanted)
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert largest > 1e-2
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5 * max(1.0, largest))


def gradients_of(adapted: Adapted) -> dict[str, torch.Tensor]:
    """Gradients under PEFT's names, without its prefix."""
    named = {id(p): p for _, p in adapter_parameters(adapted.model)}
    kept = {id(p): p.detach().clone() for p in named.values()}
    try:
        for parameter in named.values():
            parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        state = {k: v.detach().clone() for k, v in adapter_state_dict(adapted.model).items()}
    finally:
        for key, parameter in named.items():
            parameter.data = kept[key]
    return {name.removeprefix("base_model.model."): value for name, value in state.items()}


@pytest.mark.parametrize("family", ["BERT", "GPT-2"])
def test_outputs_are_pefts_and_the_measures_agree(
    bases: dict[str, Path], rows: EntityRows, family: str
) -> None:
    adapted = adapted_on(bases[family])
    task: Any = adapted.task
    encoded = task.encode(rows, adapted.base.tokenizer, adapted.max_length)
    outputs = adapted.outputs_of(encoded)
    assert isinstance(outputs, Ragged)
    ids, mask, labels = padded(encoded)
    with torch.no_grad():
        out = peft_model(adapted)(input_ids=ids, attention_mask=mask, labels=labels)
    read = (labels != UNREAD).numpy()
    np.testing.assert_allclose(outputs.values, out.logits.numpy()[read], atol=1e-5)
    assert task.evaluation_loss(outputs, encoded) == pytest.approx(float(out.loss), abs=1e-5)
    assert task.units(encoded.targets) == int(read.sum()) == len(rows.tags.values)
    metrics = task.metrics(outputs, encoded)
    assert task.score(outputs, encoded).value == pytest.approx(metrics.f1, abs=1e-12)
    assert metrics.summary().primary.key == task.deciding.key


def test_a_perfect_head_has_all_points(bases: dict[str, Path], rows: EntityRows) -> None:
    adapted = adapted_on(bases["BERT"])
    task: Any = adapted.task
    encoded = task.encode(rows, adapted.base.tokenizer, 12)
    assert len(encoded) > encoded.examples == len(rows)  # several windows for some
    targets = encoded.targets.values[encoded.targets.values != UNREAD]
    logits = 20 * np.eye(5, dtype=np.float32)[targets]
    outputs = Ragged(
        logits, np.cumsum([0, *((encoded.targets[m] != UNREAD).sum() for m in range(len(encoded)))])
    )
    assert task.metrics(outputs, encoded).f1 == 1.0
    for place, answer in enumerate(task.answers(outputs, encoded)):
        row = rows[place]
        assert answer["tags"] == [rows.names[tag] for tag in row.tags]
        for entity in answer["entities"]:
            assert entity["text"] == row.text[entity["start"] : entity["end"]]
            assert entity["text"].split() == rows.tokens(place)[slice(*entity["tokens"])]


def test_inputs(bases: dict[str, Path]) -> None:
    adapted = adapted_on(bases["BERT"])
    texts = ["Paul ran in New York.", "", "   ", "\u200b", "é 👍🏽 x" * 40]
    answers = adapted.predict(texts)
    assert [set(answer) for answer in answers] == [{"entities"}] * 5
    for text, answer in zip(texts, answers, strict=True):
        for entity in answer["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]
            assert 0 < entity["score"] <= 1
    assert answers[1:4] == [{"entities": []}] * 3
    alone = [adapted.predict([text])[0] for text in texts]
    assert [a["entities"] == b["entities"] for a, b in zip(alone, answers, strict=True)] == [True] * 5
    tokens = adapted.predict([{"tokens": json.dumps(["Paul", "ran"])}, {"text": "Paul ran"}])
    assert len(tokens[0]["tags"]) == 2
    assert [{k: v for k, v in e.items() if k != "tokens"} for e in tokens[0]["entities"]] == tokens[1][
        "entities"
    ]
    for wrong in ({"tokens": "Paul ran"}, {"question": "x"}, {}):
        with pytest.raises(DataError, match="this adapter reads 'text', or 'tokens' as a JSON list"):
            adapted.predict([wrong])


def test_unknown_types_are_named(rows: EntityRows, bases: dict[str, Path]) -> None:
    adapted = adapted_on(bases["BERT"])
    task = Entities(("O", "B-loc", "I-loc", "B-person", "I-person"))
    with pytest.raises(DataError, match=r"of the type 'per', which this adapter does not know\..*'?person"):
        task.encode(rows, adapted.base.tokenizer, 64)


def test_facts_make_the_task_again(rows: EntityRows, bases: dict[str, Path]) -> None:
    task = Entities(LABELS, "edges")
    assert KIND.from_facts(json.loads(json.dumps(task.facts()))) == task
    assert KIND.inspect(task.facts())[0] == ("types", "loc, per")
    tokenizer = adapted_on(bases["BERT"]).base.tokenizer
    shown = task.shown(rows, 0, tokenizer, 64)
    assert shown.labels == tuple(shown.labels)
    targets = [(token.text.strip(), token.tag) for token in shown.tokens if token.target]
    assert [tag for _, tag in targets] == [rows.names[tag] for tag in rows[0].tags]
    assert [tag for _, tag in targets].count("B-per") == sum(
        label.startswith("per: ") for label in shown.labels
    )
    assert task.full_lengths(rows, tokenizer).tolist() == task.encode(rows, tokenizer, 64).lengths.tolist()
    given = task.inputs_of(rows, [0, 2])
    again = task.encode_inputs(given, tokenizer, 64)
    wanted = task.encode(rows.select(np.array([0, 2])), tokenizer, 64)
    assert again.ids.ids.tolist() == wanted.ids.ids.tolist()
    assert (again.targets.values == READ).tolist() == (wanted.targets.values != UNREAD).tolist()


def test_a_tokenizer_that_knows_no_word_is_refused(rows: EntityRows) -> None:
    empty = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(DataError, match=r"has no token for any of \d+ words"):
        Entities(LABELS, "edges").encode(rows, empty, 64)
