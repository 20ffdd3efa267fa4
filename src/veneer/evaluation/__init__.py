"""How good an adapter is, beside the baselines that keep one honest, and the report that says so.

metrics, bootstrap, calibration, scores: numbers. baselines: what a simpler way reaches. mistakes: the rows
worth reading. curves, pictures: PNG. report, model_card: pages for people. Nothing in here knows torch, a
model or a trainer; it gets arrays, texts and plain facts.
"""

from veneer.evaluation.bootstrap import Difference, Interval, paired_difference
from veneer.evaluation.metrics import (
    ClassificationMetrics,
    LabelScore,
    MultilabelMetrics,
    classification_metrics,
    multilabel_metrics,
)
from veneer.evaluation.scores import Metrics, Score, Scores

__all__ = [
    "ClassificationMetrics",
    "Difference",
    "Interval",
    "LabelScore",
    "Metrics",
    "MultilabelMetrics",
    "Score",
    "Scores",
    "classification_metrics",
    "multilabel_metrics",
    "paired_difference",
]
