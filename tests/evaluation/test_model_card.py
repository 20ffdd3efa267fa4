"""The model card, read by huggingface_hub's own parser and, its code, by Python and by transformers + PEFT."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from evaluation_cases import LABELS, NASTY, make_facts
from huggingface_hub import ModelCard
from numpy.testing import assert_allclose

from veneer.evaluation import BaseFacts, ReportFacts, model_card, sequence_classification_usage


def test_the_hub_reads_the_front_matter() -> None:
    facts = make_facts()
    text = model_card(facts, peft_usage="print(1)", labels=LABELS)
    card = ModelCard(text)
    assert card.data.library_name == "peft"
    assert card.data.base_model == "org/base"
    assert card.data.license == "apache-2.0"
    assert card.data.metrics == ["accuracy", "f1"]
    assert card.data.eval_results is not None
    assert facts.test is not None
    assert card.data.eval_results[0].metric_value == round(facts.test.summary().primary.value, 4)
    assert card.data.eval_results[0].dataset_split == "test"
    assert card.data.model_name == facts.title


def test_the_card_tells_what_a_reader_needs_and_escapes_what_people_wrote() -> None:
    facts = make_facts()
    text = model_card(
        facts,
        peft_usage="x = '```'",
        veneer_usage="import veneer",
        labels=LABELS,
        adapter="my adapters/a",
        limits=("Not for law.",),
    )
    body = text.split("---", 2)[2]
    for piece in (
        'veneer predict "my adapters/a" "the text to classify"',
        "import veneer",
        "````python\nx = '```'\n````",
        "| Accuracy | ",
        "| always saying ",
        "On the same test rows",
        "600,000 of 22,600,000",
        "Not for law.",
    ):
        assert piece in body, piece
    prose = re.sub(r"(?s)`{3,}.*?`{3,}|`[^`\n]*`", "", body)
    assert "<script>" not in prose.replace("\\<script\\>", "")
    assert NASTY not in prose
    columns = {
        line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("| Accuracy")
    }
    assert columns == {4}


def test_a_card_without_numbers_is_a_card() -> None:
    text = model_card(ReportFacts(title="t", task="one label", base=BaseFacts("b")), peft_usage="pass")
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["base_model"] == "b"
    assert "model-index" not in matter
    assert "Not evaluated" in text


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("decoder", [False, True])
def test_the_code_for_peft_is_python(several: bool, decoder: bool) -> None:
    code = sequence_classification_usage("org/base", LABELS, several=several, decoder=decoder)
    tree = ast.parse(code)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "from_pretrained" in names
    assert ("sigmoid" in names) == several
    assert ("pad_token_id" in names) == decoder


def test_the_code_for_peft_runs_and_answers_as_the_adapter_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["the", "text", "to", "classify"]]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    BertForSequenceClassification(sizes).save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    batch = tokenizer(["the text to classify"], return_tensors="pt")
    with torch.no_grad():
        chances = adapted(**batch).logits.softmax(-1)[0]
    code = sequence_classification_usage(str(tmp_path / "base"), "abc", adapter=str(tmp_path / "adapter"))
    exec(compile(code, "README.md", "exec"), {})
    label, chance = capsys.readouterr().out.split()[-2:]
    assert label == "abc"[int(chances.argmax())]
    assert_allclose(float(chance), float(chances.max()), atol=1e-6)  # fp32, the same computation twice
