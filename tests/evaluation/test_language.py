"""Metrics of language models, against formulas in float64 and torch's own loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from veneer.errors import DataError
from veneer.evaluation.language import language_metrics, mean_loss


def _tokens(seed: int = 0, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 9, n)
    examples = np.repeat(np.arange(n), counts)
    return draw.exponential(1.5, counts.sum()).astype(np.float32), draw.random(counts.sum()) < 0.8, examples


def test_the_figures_are_those_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(12, 7, generator=draw), torch.randint(7, (12,), generator=draw)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy()
    right = (logits.argmax(1) == targets).numpy()
    examples = np.repeat(np.arange(4), 3)
    found = language_metrics(losses, right, examples)
    whole = torch.nn.functional.cross_entropy(logits, targets)
    assert found.loss == pytest.approx(whole.item(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(whole.item()), rel=1e-6)
    assert found.token_accuracy == right.mean()
    assert found.exact_match == right.reshape(4, 3).all(axis=1).mean()
    assert (found.n, found.tokens) == (4, 12)


def test_the_mean_is_over_tokens_and_not_over_examples() -> None:
    found = language_metrics(np.array([1.0, 1.0, 1.0, 5.0]), np.ones(4, bool), np.array([0, 0, 0, 1]))
    assert found.loss == 2.0
    assert found.exact_match == 1.0


def test_the_intervals_hold_the_figures_and_shrink_with_more_examples() -> None:
    few, many = (language_metrics(*_tokens(n=n)) for n in (20, 2000))
    for found in (few, many):
        for score in found.summary().scores:
            assert score.interval is not None
            assert score.interval.low <= score.value <= score.interval.high
    width = [m.intervals["loss"].high - m.intervals["loss"].low for m in (few, many)]
    assert width[1] < width[0] / 5  # a tenth, with the draw's own noise
    assert few.to_json()["intervals"]["perplexity"]["low"] == pytest.approx(
        math.exp(few.intervals["loss"].low)
    )


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    losses, right, examples = _tokens(n=400)
    mean, error = mean_loss(losses, examples)
    found = language_metrics(losses, right, examples)
    assert mean == pytest.approx(found.loss)
    interval = found.intervals["loss"]
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    assert mean_loss(losses[:1], examples[:1])[1] == 0.0


def test_texts_have_no_answers_to_match() -> None:
    found = language_metrics(*_tokens(), answers=False)
    assert found.exact_match is None
    assert "exact_match" not in found.to_json()
    assert found.summary().primary.key == "loss"


def test_what_can_not_be_measured() -> None:
    with pytest.raises(DataError, match="0 losses"):
        language_metrics(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="not a finite number"):
        language_metrics(np.array([np.nan]), np.ones(1, bool), np.zeros(1, np.int64))
