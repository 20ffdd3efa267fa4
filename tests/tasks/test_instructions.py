"""Instructions against transformers and PEFT on the same rows: losses, gradients, cuts, blocks, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from bases import tiny_bert
from instruction_cases import REASONING, ROWS, chat_tokenizer, instruction_file, writing_base
from reference.causal import CHAT_TEMPLATE, byte_tokenizer
from veneer.data.config import DataConfig
from veneer.data.ragged import Ragged
from veneer.data.sources import Source
from veneer.engine import pack
from veneer.errors import BaseError, DataError
from veneer.evaluation.blocks import Table
from veneer.lora import LoraConfig, adapter_parameters, adapter_state_dict, load_adapter_state_dict
from veneer.models import load_base
from veneer.models.forms import HeadSpec
from veneer.tasks.adapted import Adapted, adapt
from veneer.tasks.base import Encoded
from veneer.tasks.encoding import TokenLists
from veneer.tasks.inference import infer_kind
from veneer.tasks.instruction_data import InstructionOptions, claims, labelled, prepare
from veneer.tasks.instruction_pages import _samples
from veneer.tasks.instructions import KIND, Instructions
from veneer.tasks.kind import Making
from veneer.tasks.previewing import preview_source
from veneer.tasks.rendered import NOT_READ
from veneer.tasks.templates import ALPACA, Template

FAMILIES = ("gpt2", "llama")


def prepared(path: Path, options: InstructionOptions | None = None, **data: Any) -> Any:
    """The rows of a file, none of them split off unless asked for."""
    given = {"source": str(path), "validation_fraction": 0, "test_fraction": 0} | data
    return prepare(Source(DataConfig.parse(given)), options or InstructionOptions())


def adapted_on(folder: Path, task: Instructions, *, max_length: int | None = None) -> Adapted:
    """A base of a folder with an adapter whose every tensor counts."""
    base = load_base(str(folder), head=HeadSpec("causal"))
    found = adapt(
        base,
        task,
        LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"),
        precision="fp32",
        max_length=max_length,
    )
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for _, parameter in adapter_parameters(found.model):
            parameter.normal_(0.0, 0.1)
    return found


def of_peft(folder: Path, state: dict[str, Tensor]) -> Any:
    """The same adapter in PEFT, on transformers' own model."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    loaded = peft.set_peft_model_state_dict(model, state)
    assert not loaded.unexpected_keys
    return model


def padded(encoded: Encoded, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and unshifted labels (B, L) as transformers takes them, padded on the right."""
    longest = max(int(encoded.lengths[row]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, NOT_READ)
    for place, row in enumerate(rows):
        own, next_ones = np.asarray(encoded[row], np.int64), np.asarray(encoded.targets[row], np.int64)  # type: ignore[index]
        ids[place, : len(own)] = torch.from_numpy(own)
        mask[place, : len(own)] = 1
        labels[place, 1 : len(own)] = torch.from_numpy(next_ones[:-1])
    return ids, mask, labels


def ours(adapted: Adapted, encoded: Encoded, rows: list[int]) -> Tensor:
    """The loss of a batch, through the engine and the task."""
    batch = pack([encoded[row] for row in rows])
    order = np.array([rows[place] for place in batch.order])
    assert encoded.targets is not None
    targets = adapted.task.collate(encoded.targets[order])
    return adapted.task.loss(adapted.outputs(batch, targets=targets), targets, batch.layout)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["answer", "all"])
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    tmp_path: Path, family: str, loss: Any
) -> None:
    folder = writing_base(tmp_path / family, family)
    rows = prepared(instruction_file(tmp_path / "rows.json")).train
    adapted = adapted_on(folder, Instructions(Template("alpaca", ALPACA), reads_loss=loss))
    encoded = adapted.task.encode(rows, adapted.base.tokenizer, adapted.max_length)
    model = of_peft(folder, adapter_state_dict(adapted.model))
    places = [0, 2, 3, 5]
    ids, mask, labels = padded(encoded, places)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    found = ours(adapted, encoded, places)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # fp32, sums in another order
    expected.backward()
    found.backward()
    theirs = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}
    mine = {n: p.grad for n, p in adapter_parameters(adapted.model)}
    assert len(mine) == len(theirs) >= 8
    largest = max(float(g.abs().max()) for g in theirs.values() if g is not None)
    by_layer = {_short(name): gradient for name, gradient in theirs.items()}
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, by_layer[_short(name)], rtol=1e-4, atol=1e-5 * largest)


def _short(name: str) -> str:
    layer = name.removeprefix("base_model.model.").partition(".adapters.")[0].partition(".lora_")[0]
    return f"{layer}.{'A' if 'lora_A' in name else 'B'}"


def test_batches_add_up_to_the_mean_over_all_tokens_as_transformers_counts_them(tmp_path: Path) -> None:
    """transformers' Trainer gives the model `num_items_in_batch`: the labels of all accumulated batches."""
    folder = writing_base(tmp_path / "base")
    rows = prepared(instruction_file(tmp_path / "rows.json")).train
    adapted = adapted_on(folder, Instructions(Template("alpaca", ALPACA)))
    encoded = adapted.task.encode(rows, adapted.base.tokenizer, adapted.max_length)
    assert encoded.targets is not None
    batches = [[0, 1], [5], [2, 3, 4]]
    model = of_peft(folder, adapter_state_dict(adapted.model))
    parts = [padded(encoded, batch) for batch in batches]
    items = sum((labels != NOT_READ).sum() for _, _, labels in parts)
    expected = sum(
        model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=items).loss
        for ids, mask, labels in parts
    )
    units = [adapted.task.units(encoded.targets[np.array(batch)]) for batch in batches]
    assert sum(units) == int(items)
    found = sum(
        ours(adapted, encoded, batch) * n / sum(units) for batch, n in zip(batches, units, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_outputs_and_metrics_are_those_of_single_rows(tmp_path: Path) -> None:
    folder = writing_base(tmp_path / "base")
    rows = prepared(instruction_file(tmp_path / "rows.json")).train
    adapted = adapted_on(folder, Instructions(Template("alpaca", ALPACA)))
    encoded = adapted.task.encode(rows, adapted.base.tokenizer, adapted.max_length)
    outputs = adapted.outputs_of(encoded)
    metrics = adapted.task.metrics(outputs, encoded)
    model = of_peft(folder, adapter_state_dict(adapted.model))
    losses, right, whole = [], [], []
    for row in range(len(rows)):
        ids, mask, labels = padded(encoded, [row])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1]
        wanted = labels[0, 1:]
        read = wanted != NOT_READ
        losses.append(torch.nn.functional.cross_entropy(logits[read], wanted[read], reduction="none"))
        hits = logits[read].argmax(1) == wanted[read]
        right.append(hits)
        whole.append(bool(hits.all()))
    assert metrics.to_json()["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert metrics.to_json()["token_accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))
    assert metrics.to_json()["exact_match"] == np.mean(whole)
    assert adapted.task.evaluation_loss(outputs, encoded) == pytest.approx(metrics.to_json()["loss"])
    assert adapted.task.score(outputs, encoded).value == pytest.approx(-metrics.to_json()["loss"])


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_match_is_that_of_greedy_generation(tmp_path: Path, family: str) -> None:
    """An answer that the model itself would give is matched, and no other one."""
    folder = writing_base(tmp_path / "base", family)
    adapted = adapted_on(folder, Instructions(Template("none"), "prompt"))
    tokenizer, model = adapted.base.tokenizer, adapted.model
    for text in ("abc", "xyz", "hello", "Name"):
        prompt = tokenizer(text, return_tensors="pt")
        n = prompt["input_ids"].shape[1]
        generated = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, n:].tolist()
        if len(generated) >= 3:
            break
    assert len(generated) >= 3
    ids = [*prompt["input_ids"][0].tolist(), *generated]
    labels = [*[NOT_READ] * (n - 1), *generated, NOT_READ]
    other = [*labels[:n], (labels[n] + 1) % 200, *labels[n + 1 :]]
    encoded = Encoded(TokenLists([ids, ids]), Ragged.of([labels, other], np.int32))
    outputs = adapted.outputs_of(encoded)
    assert adapted.task.metrics(outputs, encoded).to_json()["exact_match"] == 0.5
    answers = adapted.task.answers(outputs, encoded)
    assert [answer["right_tokens"] for answer in answers] == [len(generated), len(generated) - 1]


def test_a_softcapped_head(tmp_path: Path) -> None:
    """Gemma 2 caps its logits; the loss is transformers' own all the same."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.Gemma2Config(
        vocab_size=257, intermediate_size=24, head_dim=8, final_logit_softcapping=2.0, eos_token_id=256,
        bos_token_id=256, pad_token_id=0, max_position_embeddings=400, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer(400).save_pretrained(tmp_path)
    rows = prepared(instruction_file(tmp_path / "rows.json")).train
    adapted = adapted_on(tmp_path, Instructions(Template("alpaca", ALPACA)))
    encoded = adapted.task.encode(rows, adapted.base.tokenizer, adapted.max_length)
    ids, mask, labels = padded(encoded, [0, 2])
    expected = adapted.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(ours(adapted, encoded, [0, 2]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", ["left", "right"])
def test_cuts_are_counted_and_a_row_without_labels_is_named(tmp_path: Path, cut: Any) -> None:
    path = instruction_file(tmp_path / "rows.json")
    rows = prepared(path).train
    tokenizer = load_base(str(writing_base(tmp_path / "base")), head=HeadSpec("causal")).tokenizer
    task = Instructions(Template("alpaca", ALPACA), cut=cut)
    full = task.full_lengths(rows, tokenizer)
    whole = task.encode(rows, tokenizer, 512)
    assert (whole.cut, whole.longest) == (0, full.max())
    assert whole.lengths.tolist() == full.tolist()
    if cut == "left":
        limit = int(np.sort(full)[-3])
        found = task.encode(rows, tokenizer, limit)
        assert found.cut == 2
        assert int(found.lengths.max()) == limit
        assert [tokenizer.decode(found[i])[-9:] for i in range(8)] == [
            tokenizer.decode(whole[i])[-9:] for i in range(8)
        ]
        return
    with pytest.raises(DataError) as caught:
        task.encode(rows, tokenizer, 160)
    said = str(caught.value)
    assert "no token that the loss reads is left within 160 tokens" in said
    assert "options.cut=left" in said
    lost = np.flatnonzero(
        [
            not (task.encode(rows.select(np.array([i])), tokenizer, 512).targets[0][:159] >= 0).any()
            for i in range(8)
        ]
    )  # type: ignore[index]
    assert f"{len(lost)} rows (row {', '.join(str(rows.rows[i] + 1) for i in lost[:5])}" in said


def test_the_text_of_a_special_token_is_warned_of(tmp_path: Path) -> None:
    rows = prepared(instruction_file(tmp_path / "rows.json", 3, output="Red.<|end|> And more.")).train
    tokenizer = load_base(str(writing_base(tmp_path / "base")), head=HeadSpec("causal")).tokenizer
    found = Instructions(Template("alpaca", ALPACA)).encode(rows, tokenizer, 512)
    assert found.warnings[0].startswith("3 rows of train with the text of a special token")
    clean = prepared(instruction_file(tmp_path / "clean.json", 3)).train
    assert Instructions(Template("alpaca", ALPACA)).encode(clean, tokenizer, 512).warnings == ()


def chats(path: Path) -> Path:
    """Two conversations of two answers each, and one of a single answer."""
    asked, more = {"role": "user", "content": "A colour?"}, {"role": "user", "content": "Another"}
    rows = [
        {
            "messages": [
                asked,
                {"role": "assistant", "content": "Red"},
                more,
                {"role": "assistant", "content": b},
            ]
        }
        for b in ("Blue", "Grey")
    ]
    rows.append({"messages": [asked, {"role": "assistant", "content": "White"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_that_the_template_rewrites_are_learnt_in_copies_which_is_said(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(REASONING)
    rows = prepared(chats(tmp_path / "chats.jsonl")).train
    task = Instructions(Template("base", REASONING), "messages")
    found = task.encode(rows, tokenizer, 512)
    assert (len(found), found.examples) == (5, 3)
    (said,) = found.warnings
    assert said.startswith("The template writes earlier answers otherwise once another follows")
    assert said.endswith("in a copy of its conversation up to there: 4 texts for 2 conversations of train.")
    told = [tokenizer.decode([t for t in found.targets[place] if t != NOT_READ]) for place in range(5)]  # type: ignore[index]
    thoughts, end = "<think>\n\n</think>\n\n", "<|im_end|>"
    assert sorted(told) == sorted(
        f"{thoughts}{answer}{end}" for answer in ("Red", "Red", "Blue", "Grey", "White")
    )
    again = task.encode_inputs(task.inputs_of(rows, range(3)), tokenizer, 512)
    assert [again[place].tolist() for place in range(5)] == [found[place].tolist() for place in range(5)]
    shown = task.shown(rows, 0, tokenizer, 512)
    assert shown.labels[0].endswith("tokens in the loss" if rows[0].answer == "White" else "in 2 copies")
    lengths = task.full_lengths(rows, tokenizer)
    assert lengths.tolist() == [max(found.lengths[found.example == place]) for place in range(3)]


def test_the_preview_says_what_training_would_say(tmp_path: Path) -> None:
    base = writing_base(tmp_path / "base")
    chat_tokenizer(REASONING).save_pretrained(base)
    rows = chats(tmp_path / "chats.jsonl")
    whole = {"source": str(rows), "validation_fraction": 0, "test_fraction": 0}
    seen = preview_source(DataConfig.parse(whole), str(base)).preview
    assert [one for one in seen.warnings if one.endswith("4 texts for 2 conversations of train.")]
    short = preview_source(
        DataConfig.parse(whole), str(base), max_length=20, options={"cut": "right"}
    ).preview
    assert [one for one in short.warnings if one.startswith("Training would stop here: ")]
    assert short.examples


def test_texts_become_blocks_in_which_every_token_is_foretold_once(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("a short one\n\n" + "abcdefghij" * 7 + "\n", encoding="utf-8")
    rows = prepared(path).train
    tokenizer = load_base(str(writing_base(tmp_path / "base")), head=HeadSpec("causal")).tokenizer
    task = Instructions(Template("none"), "text")
    found = task.encode(rows, tokenizer, 20)
    assert found.examples == 2
    assert found.cut == 0
    assert int(found.lengths.max()) == 20
    assert found.example is not None
    for place, text in enumerate(rows):
        features = np.flatnonzero(found.example == place)
        told = [int(t) for f in features for t in found.targets[int(f)] if t != NOT_READ]  # type: ignore[index]
        assert told == [*tokenizer(text.text)["input_ids"], tokenizer.eos_token_id][1:]


def test_inputs_with_answers_are_features_and_without_them_prompts(tmp_path: Path) -> None:
    rows = prepared(instruction_file(tmp_path / "rows.json")).train
    tokenizer = load_base(str(writing_base(tmp_path / "base")), head=HeadSpec("causal")).tokenizer
    task = Instructions(Template("alpaca", ALPACA))
    whole = task.encode(rows, tokenizer, 512)
    again = task.encode_inputs(task.inputs_of(rows, range(8)), tokenizer, 512)
    assert json.loads(json.dumps(task.inputs_of(rows, [2]))) == task.inputs_of(rows, [2])
    assert again.targets is not None
    for place in range(8):
        assert again[place].tolist() == whole[place].tolist()
        assert again.targets[place].tolist() == whole.targets[place].tolist()  # type: ignore[index]
    prompts = task.encode_inputs(
        [ROWS[0]["instruction"], {"instruction": "Correct the word.", "input": "freind"}], tokenizer, 512
    )
    assert prompts.targets is None
    number = [one.turns[0].content for one in rows].index(ROWS[0]["instruction"])
    assert whole[number].tolist()[: len(prompts[0])] == prompts[0].tolist()
    assert tokenizer.decode(prompts[1]).endswith("### Input:\nfreind\n\n### Response:\n")
    with pytest.raises(DataError, match=r"input 2: it has colour; expected prompt, instruction"):
        task.encode_inputs(["a", {"colour": "red"}], tokenizer, 512)


def test_what_is_shown_is_what_is_read(tmp_path: Path) -> None:
    rows = prepared(instruction_file(tmp_path / "rows.json")).train
    tokenizer = load_base(str(writing_base(tmp_path / "base")), head=HeadSpec("causal")).tokenizer
    task = Instructions(Template("alpaca", ALPACA))
    for limit in (512, 150):
        encoded = task.encode(rows, tokenizer, limit)
        for place in range(3):
            shown = task.shown(rows, place, tokenizer, limit)
            assert sum(token.read for token in shown.tokens) == encoded.lengths[place]
            assert sum(token.target for token in shown.tokens) == task.units(
                encoded.targets[np.array([place])]
            )  # type: ignore[index]
            assert "".join(t.text for t in shown.tokens if t.target) == rows[place].answer + "<|end|>"
            assert shown.tokens[-1].special


def test_the_facts_make_the_task_again() -> None:
    task = Instructions(Template("given", "x"), "messages", "all", "right", 2, 9)
    assert Instructions.from_facts(json.loads(json.dumps(task.facts()))) == task


@pytest.mark.parametrize(
    ("name", "content", "decoder", "reason"),
    [
        ("a.json", '[{"instruction": "a", "output": "b"}]', None, "columns instruction and output"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}]}',
            None,
            "column messages, a list of messages",
        ),
        ("a.csv", "prompt,completion\na,b\n", None, "columns prompt and completion"),
        ("a.csv", "text,label\na b,c\n", True, None),
        ("a.csv", "text\nhello you\n", True, "one column of text, and a base that writes"),
        ("a.csv", "text\nhello you\n", None, None),
        ("a.txt", "hello\n", None, "a file of text (.txt)"),
    ],
)
def test_what_is_claimed(
    tmp_path: Path, name: str, content: str, decoder: bool | None, reason: str | None
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert claims(Source(DataConfig.parse({"source": str(path)})), decoder) == reason


def test_a_text_whose_first_lines_look_like_a_table_is_a_text(tmp_path: Path) -> None:
    lines = [
        "It was, as a, b, c and d say, late.",
        "So it was, they said, again, and again, all of it.",
        "No.",
    ]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    kind, choice = infer_kind(
        "auto", Source(DataConfig(source=str(path))), str(writing_base(tmp_path / "base"))
    )
    assert choice is not None
    assert (kind.name, choice.reason) == ("instructions", "a file of text (.txt)")


def test_the_template_is_chosen_with_the_base_and_said(tmp_path: Path) -> None:
    data = prepared(instruction_file(tmp_path / "rows.json"))
    for template, origin, warns in ((None, "alpaca", 1), (CHAT_TEMPLATE, "base", 0)):
        base = load_base(str(writing_base(tmp_path / origin, template=template)), head=HeadSpec("causal"))
        made = Making(data, base, InstructionOptions())
        task: Any = KIND.make(made)
        assert task.template.origin == origin
        assert [choice.what for choice in made.notes.choices] == ["template"]
        assert len(made.notes.warnings) == warns


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"is an encoder .bert.* with base\."):
        load_base(str(tiny_bert(tmp_path)), head=HeadSpec("causal"))


def test_rows_to_measure_on_are_read_as_in_training(tmp_path: Path) -> None:
    data = prepared(instruction_file(tmp_path / "rows.json")).summary()
    more = tmp_path / "more.csv"
    more.write_text("instruction,output,x\nSay no.,No.,1\n", encoding="utf-8")
    task = Instructions(Template("alpaca", ALPACA))
    found = labelled(task, data, Source(DataConfig.parse({"source": str(more)})))
    assert [one.answer for one in found.rows] == ["No."]  # type: ignore[attr-defined]
    text = tmp_path / "text.txt"
    text.write_text("hello\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds texts; the adapter learnt to answer"):
        labelled(task, data, Source(DataConfig.parse({"source": str(text)})))


def test_a_state_of_peft_is_loaded(tmp_path: Path) -> None:
    """No head is saved, and PEFT's own state fits."""
    folder = writing_base(tmp_path / "base")
    adapted = adapted_on(folder, Instructions(Template("none")))
    model = of_peft(folder, {})
    state = peft.get_peft_model_state_dict(model)
    load_adapter_state_dict(adapted.model, state)
    assert not any("lm_head" in name or "wte" in name for name in state)


def test_runs_of_line_breaks_do_not_fill_the_report() -> None:
    entry = {"step": 1, "samples": [{"asked": "a", "expected": "b", "written": "c" + 90 * "\n"}]}
    section = _samples([entry])
    assert section is not None
    assert any(isinstance(block, Table) and block.rows[0] == ("1", "c\n⏎ × 90\n") for block in section.blocks)
