"""The pictures: they decode, hold ink, and stand odd labels and odd histories without a warning (an error here)."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from evaluation_cases import LABELS, history, noisy
from numpy.testing import assert_allclose

from veneer.evaluation import HistoryPoint, classification_metrics
from veneer.evaluation.calibration import calibration_of
from veneer.evaluation.curves import _running_mean, loss_curve, metric_curve
from veneer.evaluation.figures import shown_label
from veneer.evaluation.pictures import calibration_diagram, confusion_picture, top_confusions_picture


def check_pixels(png: bytes | None) -> np.ndarray:
    """The decoded picture (H, W, 3); asserts that it is one, wide enough to print, and not blank."""
    from matplotlib.image import imread

    assert png is not None
    image = imread(io.BytesIO(png), format="png")[..., :3]
    assert image.shape[1] >= 600  # 80 mm at 190 dots an inch
    assert image.std() > 0.01
    return image


def test_loss_and_metric_curves_for_few_and_many_points() -> None:
    for points in (1, 2, 12, 300):
        check_pixels(loss_curve(history(points)))
        check_pixels(metric_curve(history(points), reference=("TF-IDF", 0.9)))
    check_pixels(metric_curve(history(6), name="Perplexity", percent=False, higher_is_better=False))


def test_the_circle_is_around_the_adapter_that_was_kept_or_else_the_best() -> None:
    def drawn(kept: int | None) -> np.ndarray:
        values = (0.5, 0.9, 0.8)
        points = [HistoryPoint(i, i + 1.0, i, val_metric=v, kept=i == kept) for i, v in enumerate(values)]
        return check_pixels(metric_curve(points))

    assert not np.array_equal(drawn(2), drawn(1))
    assert_allclose(drawn(None), drawn(1), atol=0)


def test_curves_without_values_are_no_picture_and_not_finite_ones_are_left_out() -> None:
    assert loss_curve(()) is None
    assert metric_curve([HistoryPoint(1, 0.1, 8, train_loss=1.0)]) is None
    assert loss_curve([HistoryPoint(1, 0.1, 8, train_loss=math.nan, val_loss=math.inf)]) is None
    check_pixels(loss_curve([*history(3), HistoryPoint(40, 1.0, 320, train_loss=math.nan)]))
    check_pixels(loss_curve([HistoryPoint(0, 0.0, 0, train_loss=1.0)]))  # before the first step


def test_history_is_read_from_lines_with_further_keys() -> None:
    (point,) = HistoryPoint.read([{"step": 3, "epoch": 0.5, "examples": 24, "train_loss": 0.7, "tokens": 99}])
    assert point == HistoryPoint(3, 0.5, 24, train_loss=0.7)


def test_running_mean_against_a_plain_loop() -> None:
    values = np.random.default_rng(0).normal(size=200)
    plain = [values[max(0, i - 5) : i + 6].mean() for i in range(200)]
    assert_allclose(_running_mean(values), plain, atol=1e-12)


@pytest.mark.parametrize("size", [2, 6, 30, 31])
def test_confusion_pictures_of_all_sizes(size: int) -> None:
    labels = (*LABELS, *(f"label {k}" for k in range(size)))[:size]
    metrics = classification_metrics(*noisy(400, size), labels, bootstrap=10)
    check_pixels(confusion_picture(metrics.confusion, labels))


def test_pictures_of_perfect_and_of_empty_answers() -> None:
    check_pixels(top_confusions_picture(np.diag([3, 4]), ("a", "b")))
    check_pixels(confusion_picture(np.array([[0, 0], [3, 0]]), ("absent", "wrong")))
    check_pixels(calibration_diagram(calibration_of(np.array([0.7]), np.array([True]))))
    check_pixels(
        calibration_diagram(calibration_of(np.linspace(0, 1, 300), np.arange(300) > 150), several_labels=True)
    )


def test_labels_are_shown_as_the_font_can() -> None:
    assert shown_label("billing", 0) == "billing"
    assert shown_label("日本語", 5) == "#6"
    assert shown_label("two\nlines\tand $x$", 0) == "two lines and $x$"
    assert shown_label("x" * 50, 0) == "x" * 19 + "…"
    assert shown_label("!?", 0) == "!?"


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert loss_curve(history(5)) == loss_curve(history(5))


def test_pyplot_and_its_global_state_stay_out() -> None:
    code = (
        "import sys; from veneer.evaluation.curves import HistoryPoint, loss_curve; "
        "loss_curve([HistoryPoint(1, 0.5, 8, train_loss=1.0)]); print('matplotlib.pyplot' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
