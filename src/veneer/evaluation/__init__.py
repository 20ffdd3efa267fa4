"""How good an adapter is, beside the baselines that keep one honest, and the report that says so.

metrics, bootstrap, calibration, scores: numbers. baselines: what a simpler way reaches. mistakes: the rows
worth reading. curves, pictures: PNG. report, model_card: pages for people. Nothing in here knows torch, a
model or a trainer; it gets arrays, texts and plain facts.
"""

from veneer.evaluation.baselines import (
    Baseline,
    compared,
    linear_probe,
    majority_baseline,
    rows_right,
    tfidf_baseline,
)
from veneer.evaluation.bootstrap import Difference, Interval, paired_difference
from veneer.evaluation.curves import HistoryPoint
from veneer.evaluation.facts import (
    BaseFacts,
    Choice,
    DataFacts,
    LoraFacts,
    ReportFacts,
    SpeedFacts,
    SplitFacts,
)
from veneer.evaluation.metrics import (
    ClassificationMetrics,
    LabelScore,
    MultilabelMetrics,
    classification_metrics,
    multilabel_metrics,
)
from veneer.evaluation.mistakes import Mistake, likely_mislabelled, worst_errors
from veneer.evaluation.model_card import model_card, sequence_classification_usage
from veneer.evaluation.report import report_html, write_report
from veneer.evaluation.scores import Metrics, Score, Scores
from veneer.evaluation.verdict import Verdict, verdict_of

__all__ = [
    "BaseFacts",
    "Baseline",
    "Choice",
    "ClassificationMetrics",
    "DataFacts",
    "Difference",
    "HistoryPoint",
    "Interval",
    "LabelScore",
    "LoraFacts",
    "Metrics",
    "Mistake",
    "MultilabelMetrics",
    "ReportFacts",
    "Score",
    "Scores",
    "SpeedFacts",
    "SplitFacts",
    "Verdict",
    "classification_metrics",
    "compared",
    "likely_mislabelled",
    "linear_probe",
    "majority_baseline",
    "model_card",
    "multilabel_metrics",
    "paired_difference",
    "report_html",
    "rows_right",
    "sequence_classification_usage",
    "tfidf_baseline",
    "verdict_of",
    "worst_errors",
    "write_report",
]
