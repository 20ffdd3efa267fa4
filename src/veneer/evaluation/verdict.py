"""What the numbers say in one sentence, and whether the adapter is worth having. It says so where it is not.

This module reads facts and returns words; it must not know how a page looks.
"""

from __future__ import annotations

from dataclasses import dataclass

from veneer.evaluation.baselines import Baseline
from veneer.evaluation.facts import ReportFacts
from veneer.evaluation.scores import Score, Scores
from veneer.evaluation.wording import signed

__all__ = ["Verdict", "verdict_of"]

_FEW_ROWS = 100


@dataclass(frozen=True)
class Verdict:
    """`word`: "better", "level", "worse" than the best baseline, or "unknown"; `title` the same in words.

    `sentence` holds the numbers, `advice` what to try or to keep in mind (may be empty).
    """

    word: str
    title: str
    sentence: str
    advice: tuple[str, ...] = ()


def verdict_of(facts: ReportFacts) -> Verdict:
    """The verdict on the split that decides: paired with the best baseline where the rows are known, else by
    intervals."""
    if facts.decisive is None:
        return Verdict(
            "unknown", "Not evaluated", "No rows were kept aside, so nothing is known of how good this is."
        )
    split, metrics = facts.decisive
    scores = metrics.summary()
    sentence = _sentence(scores, split, facts.baselines)
    advice = _cautions(scores, split)
    rivals = [baseline for baseline in facts.baselines if baseline.scores.get(scores.primary.key) is not None]
    if not rivals:
        return Verdict("unknown", "No baseline to compare with", sentence, tuple(advice))
    best = _best(rivals, scores.primary)
    word = _word(best, scores.primary)
    titles = {
        "better": "Better than every baseline, beyond chance",
        "level": f"Not clearly better than {best.name}",
        "worse": f"Worse than {best.name}",
    }
    return Verdict(word, titles[word], sentence + _margin(best), tuple(_help(word, best) + advice))


def _sentence(scores: Scores, split: str, baselines: tuple[Baseline, ...]) -> str:
    primary = scores.primary
    noun = f"{scores.n:,} {split} {scores.unit}"
    if primary.key == "accuracy" and primary.name == "Accuracy":
        said = f"{primary.text} of {noun} right"
    elif primary.key == "accuracy":
        said = f"{primary.text} of {noun} right in every label"
    else:
        said = f"{primary.name} {primary.text} on {noun}"
    if primary.interval_text and primary.interval is not None:
        said += f" ({primary.interval.name} {primary.interval_text})"
    others = [(b.name, b.scores.get(primary.key)) for b in baselines]
    told = [f"{name} {score.text}" for name, score in others if score is not None]
    return "; ".join([said, *told]) + "."


def _best(rivals: list[Baseline], primary: Score) -> Baseline:
    sign = 1 if primary.higher_is_better else -1
    return max(rivals, key=lambda baseline: sign * (baseline.scores.get(primary.key) or primary).value)


def _word(best: Baseline, primary: Score) -> str:
    """Paired where possible; else the baseline's value has to lie outside the adapter's interval."""
    if best.difference is not None:
        return best.difference.verdict
    theirs = (best.scores.get(primary.key) or primary).value
    if primary.interval is None or primary.interval.low <= theirs <= primary.interval.high:
        return "level"
    return "better" if (primary.value > theirs) == primary.higher_is_better else "worse"


def _margin(best: Baseline) -> str:
    if best.difference is None:
        return ""
    value, interval = 100 * best.difference.value, best.difference.interval
    side = "above" if value >= 0 else "below"
    low, high = 100 * interval.low, 100 * interval.high
    return (
        f" On the same rows the adapter is {abs(value):.1f} points {side} {best.name} "
        f"({interval.name} {signed(low)} to {signed(high)})."
    )


def _help(word: str, best: Baseline) -> list[str]:
    if word == "better":
        return []
    if word == "level":
        return [
            f"{best.name[0].upper() + best.name[1:]} does as well here, as far as these rows can tell. More "
            "test rows would show a smaller difference; more training rows or a larger base may make one."
        ]
    return [
        "The simpler model wins: use it, or try more epochs, a higher learning rate, a larger r, adapting "
        "all linear layers, or a larger base; and read the likely mislabelled rows first."
    ]


def _cautions(scores: Scores, split: str) -> list[str]:
    said = []
    if split == "validation":
        said.append(
            "The validation rows also chose the best step, so these numbers flatter a little; "
            "keep test rows aside."
        )
    if scores.n < _FEW_ROWS:
        said.append(f"With only {scores.n} rows to test on, every number here is rough.")
    return said
