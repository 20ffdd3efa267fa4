"""Python code that gives the answers of a sequence classifier with transformers and PEFT alone.

It stands in model cards, for people who read an adapter without Veneer. This file knows heads and poolings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from veneer.evaluation.model_card import sequence_classification_usage
from veneer.models.heads import head_code, native_pooling

if TYPE_CHECKING:
    from veneer.tasks.adapted import Adapted

__all__ = ["sequence_code"]


def sequence_code(
    adapted: Adapted,
    *,
    labels: Sequence[str] = (),
    several: bool = False,
    answer: str,
    plain: bool = True,
) -> str:
    """The code.

    Args:
        adapted: whose pooling and length it follows.
        labels: names of the outputs; none where the head gives a number.
        several: any number of labels for each text.
        answer: the last line, where the class alone does not give the answer; `logits` (B, K) is there.
        plain: whether the class's outputs are the answer's numbers, where the pooling is its own.
    """
    base = adapted.base
    cut = f"truncation=True, max_length={adapted.max_length}{_without_types(adapted)}"
    pair = len(adapted.task.inputs) > 1
    given = '["the first text"], ["the second text"]' if pair else '["the text to classify"]'
    if plain and native_pooling(adapted.model) == base.pooling:
        code = sequence_classification_usage(
            base.name, labels, several=several, decoder=base.causal, number=not labels
        )
        return code.replace("truncation=True", cut).replace('["the text to classify"]', given)
    pooled = {
        "mean": "(states * inside).sum(1) / inside.sum(1)",
        "first": "states[:, 0]",
        "last": "states[torch.arange(len(states)), inside.sum(1).squeeze(-1) - 1]",
    }[base.pooling]
    named = f"labels = {list(labels)!r}\n" if labels else ""
    outputs = "len(labels)" if labels else "1"
    padding = "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token\n" if base.causal else ""
    return (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"{named}"
        f"tokenizer = AutoTokenizer.from_pretrained({base.name!r})\n"
        f"{padding}"
        f"base = AutoModelForSequenceClassification.from_pretrained({base.name!r}, num_labels={outputs})\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()\n'
        f'batch = tokenizer({given}, padding=True, {cut}, return_tensors="pt")\n'
        f"with torch.no_grad():  # this adapter pools by the {base.pooling}, which transformers' class does not\n"
        "    states = base.base_model(**batch).last_hidden_state  # (B, L, C)\n"
        '    inside = batch["attention_mask"].unsqueeze(-1)  # (B, L, 1)\n'
        f"    logits = {head_code(adapted.model, pooled)}\n"
        f"{answer}\n"
    )


def _without_types(adapted: Adapted) -> str:
    """For a model without token types whose tokenizer gives them: a decoder would add them as if they were words."""
    config: Any = adapted.model.config
    given = "token_type_ids" in adapted.base.tokenizer.model_input_names
    typed = getattr(config, "type_vocab_size", 0) > 1
    return ", return_token_type_ids=False" if given and not typed else ""
