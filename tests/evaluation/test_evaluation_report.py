"""The report: well-formed, alone, escaped, and honest about who wins."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation_cases import LABELS, NASTY, history, make_facts, noisy

from veneer.evaluation import (
    BaseFacts,
    Difference,
    Interval,
    ReportFacts,
    Score,
    Scores,
    classification_metrics,
    likely_mislabelled,
    majority_baseline,
    multilabel_metrics,
    report_html,
    verdict_of,
    worst_errors,
    write_report,
)
from veneer.evaluation.baselines import Baseline
from veneer.evaluation.blocks import Cell, Folded, Paragraph, Picture, Preformatted, Section, Spans, Table
from veneer.evaluation.curves import loss_curve
from veneer.evaluation.wording import bytes_text, duration, percent, shortened, signed

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects what a page holds, and asserts that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\N{NO-BREAK SPACE}", " ").split())

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.seen}


def test_the_page_stands_alone_and_its_pictures_lie_beside_it(tmp_path: Path) -> None:
    path = write_report(tmp_path / "adapter", make_facts())
    assert path == tmp_path / "adapter" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags() & {"script", "link", "iframe", "object", "form"}
    sources = [attributes["src"] or "" for tag, attributes in page.seen if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    beside = {file.name: file.read_bytes() for file in path.parent.glob("*.png")}
    assert set(beside) == {"loss.png", "metric.png", "confusion.png", "calibration.png"}
    assert {base64.b64decode(source.partition(",")[2]) for source in sources} == set(beside.values())
    assert all(data.startswith(b"\x89PNG\r\n\x1a\n") for data in beside.values())
    assert not [1 for _, attributes in page.seen if {"href", "srcset", "onclick", "onload"} & set(attributes)]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert not [file for file in path.parent.iterdir() if file.suffix not in {".png", ".html"}]


def test_texts_of_people_stay_texts() -> None:
    page = Page(report_html(make_facts())[0])
    assert " ".join(NASTY.split()) in page.words
    assert "spam <b>" in page.words
    assert "b" not in page.tags() - {"b"} or all(
        "style" in attributes for tag, attributes in page.seen if tag == "b"
    )
    nasty = NASTY.replace('"', "&quot;")
    assert nasty not in report_html(make_facts())[0]


def test_what_a_person_wants_to_know_is_there() -> None:
    facts = make_facts()
    words = Page(report_html(facts)[0]).words
    test = facts.test
    assert test is not None
    accuracy = test.summary().primary
    for piece in (
        f"{accuracy.text} of 120 test texts right (95 % interval {accuracy.interval_text})",
        "always saying",
        "How good it is",
        "How it learned",
        "What it confuses",
        "The texts it gets most wrong",
        "Likely mislabelled rows",
        "What it was trained on",
        "6 distinct values",
        "600,000 of 22,600,000 (2.65 %)",
        "2.4 MB",
        "23.4 s",
        "fp32 throughout.",
        "sha256:abc",
        'veneer predict adapters/messages "hello"',
    ):
        assert piece in words, piece


def test_a_page_of_almost_nothing_is_still_a_page() -> None:
    page = Page(report_html(ReportFacts(title="t", task="one label", base=BaseFacts("b")))[0])
    assert "Not evaluated" in page.words


def test_nothing_wrong_is_said_and_not_looked_for_is_left_out() -> None:
    words = Page(report_html(make_facts(mistakes=(), mislabelled=()))[0]).words
    assert "every answer is right" in words
    assert "None found among these rows" in words
    words = Page(report_html(make_facts(mistakes=None, mislabelled=None))[0]).words
    assert "most wrong" not in words
    assert "mislabelled" not in words


def test_other_tasks_bring_their_own_numbers_and_sections() -> None:
    entity = Scores(50, (Score("entity_f1", "Entity F1", 0.412, Interval(0.38, 0.44)),), unit="sentences")
    picture = loss_curve(history(3))
    assert picture is not None
    section = Section(
        "Samples <i>",
        (
            Paragraph("fixed prompts"),
            Preformatted("<s>hello\n  there"),
            Spans((("<s>", "special"), ("answer", "read"))),
            Table(("a", "b"), (("1", Cell("2", bar=0.5, band=(0.4, 0.6), note="n")),), numeric=(1,)),
            Folded("more", (Picture(picture, "preview.png", "what is read", "caption"),)),
        ),
    )
    facts = make_facts(test=entity, baselines=(), mistakes=(), mislabelled=(), sections=(section,))
    page, pictures = report_html(facts)
    words = Page(page).words
    assert "Entity F1 41.2 % on 50 test sentences (95 % interval 38.0 – 44.0)" in words
    assert "Samples <i> fixed prompts" in words
    assert "preview.png" in pictures
    assert "confusion.png" not in pictures


def test_several_labels_and_many_labels() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 6)) < 0.3).astype(int)
    chances = np.clip(rng.normal(0.25 + 0.5 * targets, 0.2), 0, 1)
    texts = ["t"] * 60
    facts = make_facts(
        test=None,
        validation=multilabel_metrics(targets, chances, LABELS, bootstrap=20),
        baselines=(majority_baseline(targets, {"v": targets}, LABELS)["v"],),
        mistakes=worst_errors(texts, targets, chances, LABELS),
        mislabelled=likely_mislabelled(texts, targets, chances, LABELS),
    )
    words = Page(report_html(facts)[0]).words
    assert "of 60 validation texts right in every label" in words
    assert "these numbers flatter a little" in words
    assert "With only 60 rows" in words
    names = tuple(f"intent {k}" for k in range(40))
    many = make_facts(
        test=classification_metrics(*noisy(300, 40), names, bootstrap=10), mistakes=(), mislabelled=()
    )
    assert "Precision and recall of each of the 40 labels" in Page(report_html(many)[0]).words


def baseline(accuracy: float, difference: Difference | None = None) -> Baseline:
    return Baseline(
        "TF-IDF", Scores(120, (Score("accuracy", "Accuracy", accuracy),)), 0.1, difference=difference
    )


@pytest.mark.parametrize(
    ("theirs", "difference", "word", "said"),
    [
        (0.10, None, "better", "Better than every baseline"),
        (0.99999, None, "worse", "Worse than TF-IDF"),
        (None, None, "level", "Not clearly better than TF-IDF"),
        (0.10, Difference(-0.1, Interval(-0.2, -0.01)), "worse", "The simpler model wins"),
        (
            0.99,
            Difference(0.1, Interval(0.02, 0.2)),
            "better",
            "10.0 points above TF-IDF (95 % interval +2.0 to +20.0)",
        ),
        (0.50, Difference(0.0, Interval(-0.01, 0.01)), "level", "does as well here"),
    ],
)
def test_the_verdict_is_honest(
    theirs: float | None, difference: Difference | None, word: str, said: str
) -> None:
    facts = make_facts()
    assert facts.test is not None
    if theirs is None:
        theirs = facts.test.summary().primary.value
    facts = dataclasses.replace(facts, baselines=(baseline(theirs, difference),))
    verdict = verdict_of(facts)
    assert verdict.word == word
    assert said in " ".join([verdict.title, verdict.sentence, *verdict.advice])
    assert verdict.title in Page(report_html(facts)[0]).words


def test_perfect_answers_are_not_called_certain() -> None:
    targets = np.arange(100) % 2
    perfect = classification_metrics(targets, np.eye(2)[targets], ("a", "b"))
    facts = make_facts(test=perfect, baselines=(), mistakes=(), mislabelled=())
    assert "100.0 % of 100 test texts right (95 % interval 96.4 – 100.0)" in Page(report_html(facts)[0]).words


def test_numbers_as_people_read_them() -> None:
    assert [duration(s) for s in (0.84, 23.44, 312, 7500)] == ["0.84 s", "23.4 s", "5 min 12 s", "2 h 5 min"]
    assert [bytes_text(b) for b in (812, 2_400_000, 999_900, 3e9)] == ["812 bytes", "2.4 MB", "1 MB", "3 GB"]
    assert [signed(v) for v in (2.14, -0.31, -0.01)] == ["+2.1", "−0.3", "0.0"]
    assert [percent(p) for p in (0.5, 0.9996, 1.0)] == ["50 %", "> 99 %", "100 %"]
    assert shortened("x" * 900, 10) == "xxxxxxxxxx … (900 characters)"
    score = Score("accuracy", "Accuracy", 0.9999, Interval(0.98, 1.0))
    assert (score.text, score.interval_text) == ("> 99.9 %", "98.0 – 100.0")
    assert Score("perplexity", "Perplexity", 12.3456, percent=False).text == "12.346"


def test_the_report_says_nothing_of_this_machine() -> None:
    page, _ = report_html(make_facts())
    assert not re.search(r"/(home|root|work|tmp|Users)/", page)
