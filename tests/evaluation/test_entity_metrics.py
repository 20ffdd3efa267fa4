"""Metrics of entities, held against seqeval."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from veneer.data.tags import bio_tags, entities_of
from veneer.evaluation.entities import count_entities, entity_metrics, f1_difference, micro_f1
from veneer.evaluation.word_tags import WordTags

TAGS = ["O", "B-per", "I-per", "B-loc", "I-loc", "E-per", "S-loc", "E-misc"]
SENTENCE = st.lists(st.sampled_from(TAGS), min_size=1, max_size=9)
PAIRS = st.lists(
    SENTENCE.flatmap(
        lambda tags: st.tuples(
            st.just(tags), st.lists(st.sampled_from(TAGS), min_size=len(tags), max_size=len(tags))
        )
    ),
    min_size=1,
    max_size=8,
)
EXACT = 1e-12  # the same fractions of the same whole numbers, in float64


def measured(rows: list[tuple[list[str], list[str]]], **options: int) -> object:
    return entity_metrics(
        count_entities(
            [entities_of(a, "BIOES") for a, _ in rows], [entities_of(b, "BIOES") for _, b in rows]
        ),
        **options,
    )


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_every_score_is_seqevals_default(rows: list[tuple[list[str], list[str]]]) -> None:
    ours = measured(rows, bootstrap=10)
    given, found = [a for a, _ in rows], [b for _, b in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "precision": precision_score(given, found),
            "recall": recall_score(given, found),
            "f1": f1_score(given, found),
        }
        report = (
            classification_report(given, found, output_dict=True, zero_division=0)
            if ours.support + ours.predicted
            else {}
        )
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(float(value), abs=EXACT)
    if report:
        assert ours.macro_f1 == pytest.approx(report["macro avg"]["f1-score"], abs=EXACT)
        assert ours.support == report["micro avg"]["support"]
    for score in ours.per_type:
        told = report[score.label]
        assert (score.precision, score.recall, score.f1) == pytest.approx(
            (told["precision"], told["recall"], told["f1-score"]), abs=EXACT
        )
        assert score.support == told["support"]
    assert {score.label for score in ours.per_type} == {k for k in report if not k.endswith(" avg")}


def random_rows(n: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Sentences in which about a third of the found tags are others than the given ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        tags = [str(tag) for tag in rng.choice(TAGS[:5], 8, p=[0.6, 0.1, 0.1, 0.1, 0.1])]
        other = [str(tag) if rng.random() > 0.9 else "O" for tag in rng.choice(TAGS[:5], 8)]
        rows.append((tags, [o if rng.random() < 0.3 else t for t, o in zip(tags, other, strict=True)]))
    return rows


def test_the_interval_is_that_of_resampled_sentences() -> None:
    rows = random_rows(120)
    counts = count_entities(
        [entities_of(a, "BIO") for a, _ in rows], [entities_of(b, "BIO") for _, b in rows]
    )
    ours = entity_metrics(counts, bootstrap=2000)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        drawn = [rows[i] for i in rng.integers(0, len(rows), len(rows))]
        values.append(f1_score([a for a, _ in drawn], [b for _, b in drawn]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert (ours.intervals["f1"].low, ours.intervals["f1"].high) == pytest.approx((low, high), abs=0.02)
    value, error = micro_f1(counts)
    assert value == pytest.approx(ours.f1, abs=EXACT)
    assert error == pytest.approx(float(np.std(values)), rel=0.25)  # the delta method against resampling


def test_differences_are_paired() -> None:
    rows = random_rows(80)
    given = [entities_of(a, "BIO") for a, _ in rows]
    ours = count_entities(given, [entities_of(b, "BIO") for _, b in rows])
    none = count_entities(given, [[] for _ in rows])
    assert f1_difference(ours, none).verdict == "better"
    assert f1_difference(ours, none).value == pytest.approx(micro_f1(ours)[0], abs=EXACT)
    same = f1_difference(ours, ours)
    assert (same.value, same.interval.low, same.interval.high) == (0, 0, 0)


def test_counts_of_sentences() -> None:
    counts = count_entities([[(0, 2, "per")], []], [[(0, 2, "per")], [(1, 2, "loc")]], ("org",))
    assert counts.types == ("loc", "org", "per")
    assert counts.exact.tolist() == [True, False]
    found = entity_metrics(counts, bootstrap=10)
    assert (found.precision, found.recall, found.exact) == (0.5, 1.0, 0.5)
    assert [score.label for score in found.per_type] == ["loc", "per"]
    assert found.to_json()["per_type"][1] == {
        "label": "per", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1, "predicted": 1
    }  # fmt: skip
    assert "'per'" in str(found.sections("test"))


def test_words_keep_their_commonest_tag() -> None:
    rows = [(["Rome", "is", "Rome"], [1, 0, 1]), (["is", "Rome", "old"], [0, 0, 2]), (["tie", "tie"], [2, 1])]
    words = WordTags.fit(rows)
    assert words.predict(["Rome", "is", "tie", "new"]) == [1, 0, 1, 0]
    assert bio_tags(2, []) == ["O", "O"]
