"""The baselines: against scikit-learn by hand, in every shape of data, bounded and the same each time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from veneer.evaluation import compared, linear_probe, majority_baseline, rows_right, tfidf_baseline
from veneer.evaluation.baselines import _sample

WORDS = {
    0: "invoice payment card refund charge money bill",
    1: "password login account locked reset code sign",
    2: "parcel delivery courier late tracking address door",
}
FILLER = [
    "please",
    "help",
    "me",
    "with",
    "the",
    "thing",
    "today",
    "i",
    "have",
    "a",
    "question",
    "about",
    "my",
    "order",
    "and",
    "it",
    "does",
    "not",
    "work",
]


def messages(n: int, *, seed: int = 0, noise: float = 0.1) -> tuple[list[str], np.ndarray]:
    """Short texts whose label shows in one or two words; a share of the labels is random."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    texts = [" ".join([*rng.choice(FILLER, 9), *rng.choice(WORDS[int(k)].split(), 2)]) for k in targets]
    flipped = rng.random(n) < noise
    return texts, np.where(flipped, rng.integers(0, 3, n), targets)


LABELS = ("billing", "login", "delivery")


def test_majority_equals_scikit_learns_dummy() -> None:
    train, test = np.array([1, 1, 0, 1, 2]), np.array([1, 0, 2, 1])
    ours = majority_baseline(train, {"test": test}, LABELS)["test"]
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((5, 1)), train)
    assert_allclose(ours.accuracy, dummy.score(np.zeros((4, 1)), test), atol=1e-12)
    assert ours.name == "always saying “login”"
    several = majority_baseline(np.array([[1, 0, 1], [1, 1, 0]]), {"t": np.array([[1, 0, 0]])}, LABELS)["t"]
    assert several.name == "always saying “billing”"
    assert several.accuracy == 1.0


def test_tfidf_learns_what_words_can_tell_in_well_under_a_second() -> None:
    texts, targets = messages(1000)
    held_out, truth = messages(300, seed=1)
    tfidf_baseline(texts[:20], targets[:20], {"t": (texts[:5], targets[:5])}, LABELS)  # imports scikit-learn
    start = time.perf_counter()
    found = tfidf_baseline(texts, targets, {"test": (held_out, truth)}, LABELS)["test"]
    assert time.perf_counter() - start < 2.0  # measured: 0.2 s; the margin is for a busy machine
    assert 0.85 < found.accuracy < 0.97  # the noise leaves 93 % to be had
    assert found.name == "TF-IDF (words) with logistic regression"
    assert found.interval is not None
    assert found.interval.low < found.accuracy < found.interval.high
    again = tfidf_baseline(texts, targets, {"test": (held_out, truth)}, LABELS)["test"]
    assert again.scores == found.scores


def test_a_script_without_spaces_is_read_by_characters() -> None:
    texts = ["荷物がまだ届きません", "支払いの請求書をください", "荷物が届かない", "請求書の支払い方法"] * 10
    targets = np.array([0, 1, 0, 1] * 10)
    found = tfidf_baseline(texts, targets, {"t": (texts[:4], targets[:4])}, ("delivery", "billing"))["t"]
    assert found.accuracy == 1.0
    assert "characters" in found.name


def test_labels_missing_from_training_and_one_label_only_are_no_accident() -> None:
    texts, targets = messages(60, noise=0.0)
    without = targets[targets != 2]
    kept = [text for text, k in zip(texts, targets, strict=True) if k != 2]
    found = tfidf_baseline(kept, without, {"t": (texts, targets)}, LABELS)["t"]
    assert 0.3 < found.accuracy <= float((targets != 2).mean())
    only = tfidf_baseline(kept[:5], np.zeros(5, int), {"t": (texts, targets)}, LABELS)["t"]
    assert_allclose(only.accuracy, (targets == 0).mean(), atol=1e-12)
    empty = tfidf_baseline(["", " "], np.array([1, 0]), {"t": (["", ""], np.array([0, 1]))}, LABELS)["t"]
    assert "no words" in empty.note
    unlike = [f"{i:08x}" for i in range(600)]
    truth = np.arange(600) % 2
    assert "no words" in tfidf_baseline(unlike, truth, {"t": (unlike, truth)}, ("a", "b"))["t"].note


def test_several_labels_go_through_one_regression_each() -> None:
    texts, first = messages(300, noise=0.0)
    targets = np.eye(3, dtype=np.int64)[first]
    targets = np.column_stack([targets, np.ones(300, np.int64), np.zeros(300, np.int64)])  # always, never
    found = tfidf_baseline(
        texts[:200], targets[:200], {"t": (texts[200:], targets[200:])}, (*LABELS, "all", "none")
    )
    assert found["t"].accuracy > 0.9
    assert found["t"].macro_f1 is not None


def test_linear_probe_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    features = rng.normal(size=(400, 16)) * rng.uniform(0.1, 50, 16)
    features[:, :3] += 2 * np.eye(3)[truth] * features[:, :3].std(0)
    features[:, 5] = 7.0  # a constant feature
    ours = linear_probe(features[:300], truth[:300], {"t": (features[300:], truth[300:])}, LABELS)["t"]
    mean, spread = features[:300].mean(0), features[:300].std(0)
    spread[5] = 1.0
    model = LogisticRegression(C=0.1, max_iter=200).fit((features[:300] - mean) / spread, truth[:300])
    right = model.predict((features[300:] - mean) / spread) == truth[300:]
    assert ours.right is not None
    assert_array_equal(ours.right, right)


def test_a_solver_that_is_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veneer.evaluation.baselines._MAX_STEPS", 1)
    texts, targets = messages(200)
    found = tfidf_baseline(texts, targets, {"t": (texts, targets)}, LABELS)["t"]
    assert found.note == "the solver was stopped after 1 steps"


def test_a_large_training_set_is_sampled_by_label_and_the_note_says_so() -> None:
    rng = np.random.default_rng(0)
    targets = rng.choice(4, 20_000, p=[0.7, 0.2, 0.0999, 0.0001])
    rows, note = _sample(targets, 4, 5_000, seed=0)
    assert note == f"fitted on a sample of {len(rows):,} of 20,000 training rows"
    assert len(np.unique(rows)) == len(rows) <= 5_001
    shares = np.bincount(targets[rows], minlength=4) / len(rows)
    assert_allclose(shares, np.bincount(targets, minlength=4) / 20_000, atol=1e-3)
    assert shares[3] > 0
    assert_array_equal(rows, _sample(targets, 4, 5_000, seed=0)[0])
    assert len(_sample(np.zeros((9_000, 3), int), 3, 3_000, seed=0)[0]) == 3_000


def test_compared_fills_in_the_difference_on_the_same_rows() -> None:
    texts, targets = messages(400)
    baseline = tfidf_baseline(texts[:50], targets[:50], {"t": (texts, targets)}, LABELS)["t"]
    perfect = rows_right(targets, np.eye(3)[targets])
    found = compared(baseline, perfect).difference
    assert found is not None
    assert_allclose(found.value, 1 - baseline.accuracy, atol=1e-12)
    assert found.verdict == "better"
    data = compared(baseline, perfect).to_json()
    assert {"name", "accuracy", "macro_f1", "intervals", "seconds", "note", "difference"} <= set(data)
