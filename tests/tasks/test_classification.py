"""Classification against torch, scikit-learn and plain loops. Tolerance 1e-6: fp32, one short sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from veneer.engine import pack
from veneer.errors import AdapterError
from veneer.tasks.base import Encoded
from veneer.tasks.classification import Classification, balanced_weights, pool
from veneer.tasks.encoding import TokenLists
from veneer.tasks.registry import task_from_facts

LABELS = ("red", "green", "blue")
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-6}


def logits(rows: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, len(LABELS), generator=torch.Generator().manual_seed(seed))


def encoded(targets: Any) -> Encoded:
    """Texts of one token with these targets."""
    return Encoded(TokenLists([[1]] * len(targets)), np.array(targets))


def task(**options: Any) -> Classification:
    return Classification(LABELS, "mean", **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_of_one_label_is_torchs_cross_entropy(smoothing: float) -> None:
    outputs, targets = logits(), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(outputs, targets)
    torch.testing.assert_close(task(label_smoothing=smoothing).loss(outputs, targets), expected, **EXACT)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_loss_is_torchs_sum_over_the_number_of_texts(smoothing: float) -> None:
    """Not over the sum of the weights: that would make a text's share depend on which texts are in its batch."""
    weights, targets = (0.5, 2.0, 1.25), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    summed = nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=smoothing, reduction="sum")
    found = task(class_weights=weights, label_smoothing=smoothing).loss(logits(), targets)
    torch.testing.assert_close(found, summed(logits(), targets) / 7, **EXACT)


def test_loss_of_several_labels_is_torchs_binary_cross_entropy() -> None:
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    expected = nn.BCEWithLogitsLoss()(logits(3), targets)
    torch.testing.assert_close(task(multi_label=True).loss(logits(3), targets), expected, **EXACT)
    weights = (2.0, 0.5, 3.0)
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))(logits(3), 0.8 * targets + 0.1)
    found = task(multi_label=True, class_weights=weights, label_smoothing=0.2).loss(logits(3), targets)
    torch.testing.assert_close(found, weighted, **EXACT)


@pytest.mark.parametrize("options", [{}, {"class_weights": (0.3, 1.0, 4.0)}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_is_a_mean_over_texts_so_that_batches_can_be_accumulated(
    multi_label: bool, options: dict[str, Any]
) -> None:
    own = task(multi_label=multi_label, **options)
    targets = torch.randint(0, 2, (7, 3)).float() if multi_label else torch.tensor([0, 1, 2, 2, 1, 0, 0])
    parts = sum(
        own.loss(logits()[part], targets[part]) * n / 7 for part, n in ((slice(5), 5), (slice(5, 7), 2))
    )
    torch.testing.assert_close(own.loss(logits(), targets), parts, **EXACT)


@pytest.mark.parametrize("counts", [(5, 3, 2), (1, 1, 98), (4, 4, 4)])
def test_balanced_weights_are_scikit_learns(counts: tuple[int, ...]) -> None:
    targets = np.repeat(np.arange(3), counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(balanced_weights(targets, LABELS, multi_label=False), expected, rtol=1e-12)


def test_balanced_weights_of_several_labels_weigh_positives_against_negatives() -> None:
    targets = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]])
    assert balanced_weights(targets, LABELS, multi_label=True) == (1 / 3, 3.0, 1.0)


def test_answers_of_one_label() -> None:
    own = Classification(LABELS, "mean", label_values=(10, 20, 30))
    outputs = logits().numpy()
    chances = softmax(outputs.astype(np.float64), axis=1)
    answers = own.answers(outputs)
    assert [a["label"] for a in answers] == [(10, 20, 30)[i] for i in chances.argmax(1)]
    for answer, row in zip(answers, chances, strict=True):
        assert list(answer["probabilities"]) == list(LABELS)
        np.testing.assert_allclose(list(answer["probabilities"].values()), row, atol=1e-6)
        assert answer["probability"] == round(float(row.max()), 6)


def test_answers_of_several_labels() -> None:
    own = task(multi_label=True, threshold=0.6)
    outputs = np.array([[3.0, -3.0, 0.5], [-1.0, -2.0, -3.0]], np.float32)
    chances = expit(outputs.astype(np.float64))
    answers = own.answers(outputs)
    assert [a["labels"] for a in answers] == [["red", "blue"], []]
    np.testing.assert_allclose(list(answers[0]["probabilities"].values()), chances[0], atol=1e-6)


def test_probabilities_of_huge_logits_are_finite() -> None:
    outputs = np.array([[1e4, -1e4, 0.0]], np.float32)
    for multi_label in (False, True):
        chances = task(multi_label=multi_label).probabilities(outputs)
        assert np.isfinite(chances).all()
        np.testing.assert_allclose(chances[0, :2], [1, 0], atol=1e-12)


def test_score_is_the_share_of_texts_with_everything_right() -> None:
    outputs = np.array([[2.0, 1, 0], [0, 2, 1], [0, 1, 2]], np.float32)
    found = task().score(outputs, encoded([0, 1, 1]))
    assert found.value == 2 / 3
    assert found.standard_error == pytest.approx(math.sqrt(2 / 9 / 3), rel=1e-12)
    several = task(multi_label=True)
    signs = np.array([[1.0, -1, -1], [1, 1, -1]], np.float32)
    assert several.score(signs, encoded([[1, 0, 0], [1, 0, 0]])).value == 0.5
    assert (several.deciding.key, several.deciding.percent) == ("accuracy", True)


TEXTS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(TEXTS, st.sampled_from(["mean", "first", "last"]))
@settings(deadline=None)
def test_pooling_against_a_loop(lengths: list[int], pooling: Any) -> None:
    batch = pack([list(range(1, n + 1)) for n in lengths])
    hidden = torch.randn(batch.tokens, 4)
    own = Classification(LABELS, pooling)
    places = own.reads(batch.layout)
    found = pool(hidden if places is None else hidden[places], batch.layout, pooling)
    expected, start = [], 0
    for length in batch.layout.lengths:
        text = hidden[start : start + length]
        expected.append({"mean": text.mean(0), "first": text[0], "last": text[-1]}[pooling])
        start += length
    torch.testing.assert_close(found, torch.stack(expected), **EXACT)


def test_pooled_states_are_float32_whatever_the_base_computes_in() -> None:
    batch = pack([[1, 2], [3]])
    for pooling in ("mean", "first", "last"):
        places = Classification(LABELS, pooling).reads(batch.layout)  # type: ignore[arg-type]
        hidden = torch.randn(3, 4).bfloat16()
        states = pool(hidden if places is None else hidden[places], batch.layout, pooling)  # type: ignore[arg-type]
        assert states.dtype == torch.float32


def test_facts_make_the_same_task_again() -> None:
    own = Classification(
        LABELS, "last", multi_label=True, label_values=(1, 2, 3), class_weights=(1.0, 2.0, 3.0),
        label_smoothing=0.1, threshold=0.4,
    )  # fmt: skip
    import json

    assert task_from_facts("classification", json.loads(json.dumps(own.facts()))) == own


@pytest.mark.parametrize(
    ("name", "facts", "message"),
    [
        ("ranking", {}, r"This adapter is for the task 'ranking'; this Veneer knows .*classification"),
        ("classification", {}, "does not describe the task 'classification' completely"),
        ("classification", {"labels": ["a"], "pooling": "mean", "new": 1}, "does not describe the task"),
    ],
)
def test_a_task_that_can_not_be_made_is_an_error(name: str, facts: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        task_from_facts(name, facts)
