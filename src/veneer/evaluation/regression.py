"""How good numbers are: variance explained, correlation, error, each with its interval.

Definitions are scikit-learn's (`r2_score`, `mean_absolute_error`, the root of `mean_squared_error`) and SciPy's
(`pearsonr`, `spearmanr`), and the tests hold them against those. Where all answers, or all given numbers, are equal, a
correlation is not defined: it is 0 here, and so is the variance explained where the given numbers are all equal.

Intervals are percentiles of the bootstrap over rows; Spearman's keeps the ranks of all rows, which a resample would
change by ties only. This module must not know what a model or a text is.

Letters: N rows, S resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.errors import DataError
from veneer.evaluation.bootstrap import Difference, Interval, percentile
from veneer.evaluation.scores import Score, Scores

__all__ = ["RegressionMetrics", "explained_difference", "regression_metrics"]

Floats = NDArray[np.float64]

_DRAWS = 20_000_000  # rows drawn in all resamples together, at most
_FEWEST = 200  # resamples, however many rows there are


@dataclass(frozen=True)
class RegressionMetrics:
    """The metrics of N numbers.

    `r2` is the variance explained: 1 - mean squared error / variance of the given numbers; 1 is perfect, 0 is what
    always saying their mean reaches, and below 0 is worse than that. `rmse` and `mae` are in the numbers' own unit.
    """

    n: int
    r2: float
    pearson: float
    spearman: float
    rmse: float
    mae: float
    intervals: dict[str, Interval]

    def summary(self) -> Scores:
        """The numbers that a person reads first; the variance explained decides."""
        between = self.intervals
        return Scores(
            self.n,
            (
                Score("r2", "Variance explained", self.r2, between["r2"]),
                Score("pearson", "Correlation (Pearson)", self.pearson, between["pearson"], percent=False),
                Score(
                    "spearman", "Correlation (Spearman)", self.spearman, between["spearman"], percent=False
                ),
                Score("rmse", "RMSE", self.rmse, between["rmse"], percent=False, higher_is_better=False),
                Score("mae", "MAE", self.mae, between["mae"], percent=False, higher_is_better=False),
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return self.summary().to_json()


def regression_metrics(
    targets: NDArray[Any],
    answers: NDArray[Any],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> RegressionMetrics:
    """Compare N answers with the N given numbers.

    Raises:
        DataError: there is no row, or a number is not finite.
    """
    given, said = _checked(targets, answers)
    ranks = np.stack([_ranks(given), _ranks(said)])
    middle = given.mean()  # far from 0 the sums of squares would lose their digits
    given, said = given - middle, said - middle
    sums = _resampled(np.concatenate([_features(given, said), _features(*ranks)], axis=1), bootstrap, seed)
    values = _figures(*(_features(x, y).sum(axis=0) for x, y in ((given, said), tuple(ranks))))
    drawn = _figures(sums[:, :7].T, sums[:, 7:].T)
    intervals = {name: _interval(values[name], drawn[name], confidence) for name in values}
    return RegressionMetrics(
        len(given), **{name: float(v) for name, v in values.items()}, intervals=intervals
    )


def explained_difference(
    targets: NDArray[Any],
    ours: NDArray[Any],
    theirs: NDArray[Any],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """Our variance explained less theirs on the same N rows, resampled in pairs."""
    given, said = _checked(targets, ours)
    other = _checked(targets, theirs)[1] - given.mean()
    given, said = given - given.mean(), said - given.mean()
    ahead = np.square(other - given) - np.square(said - given)  # by which our squared error is smaller
    sums = _resampled(np.stack([np.ones_like(given), given, given**2, ahead], axis=1), bootstrap, seed)
    whole = np.array([len(given), given.sum(), np.square(given).sum(), ahead.sum()])
    return Difference(float(_ahead(whole)), percentile(_ahead(sums.T), confidence))


def _ahead(sums: Floats) -> Floats:
    n, x, xx, ahead = sums
    return _share(ahead, xx - x * x / n)


def _checked(targets: NDArray[Any], answers: NDArray[Any]) -> tuple[Floats, Floats]:
    given, said = (np.asarray(values, np.float64).reshape(-1) for values in (targets, answers))
    if not len(given) or len(given) != len(said):
        raise DataError(f"{len(given)} given numbers and {len(said)} answers can't be compared.")
    for what, values in (("given numbers", given), ("answers", said)):
        if not np.isfinite(values).all():
            raise DataError(f"{int((~np.isfinite(values)).sum())} of the {what} are not finite.")
    return given, said


def _ranks(values: Floats) -> Floats:
    """(N,) ranks, those of equal values their mean; centred, so that sums of them stay small."""
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(values), np.float64)
    return ranks - ranks.mean()


def _features(given: Floats, said: Floats) -> Floats:
    """(N, 7) what each row adds to the sums that every figure is made of."""
    error = said - given
    columns = (np.ones_like(given), given, said, given**2, said**2, given * said, np.abs(error))
    return np.stack(columns, axis=1)


def _figures(sums: Floats, of_ranks: Floats) -> dict[str, Floats]:
    """Every figure from the sums (7, ...) of the numbers and of their ranks."""
    n, x, _, xx, yy, xy, absolute = sums
    squared = np.maximum(xx + yy - 2 * xy, 0.0)
    variance = xx - x * x / n
    return {
        "r2": np.where(variance > _tiny(xx), 1.0 - _share(squared, variance), 0.0),
        "pearson": _correlation(sums),
        "spearman": _correlation(of_ranks),
        "rmse": np.sqrt(squared / n),
        "mae": absolute / n,
    }


def _correlation(sums: Floats) -> Floats:
    n, x, y, xx, yy, xy, _ = sums
    of_x, of_y = xx - x * x / n, yy - y * y / n
    defined = (of_x > _tiny(xx)) & (of_y > _tiny(yy))
    scale = np.sqrt(np.where(defined, of_x * of_y, 1.0))
    return np.where(defined, np.clip((xy - x * y / n) / scale, -1.0, 1.0), 0.0)


def _tiny(squares: Floats) -> Floats:
    """Below this a sum of squares about the mean is rounding."""
    return 1e-13 * np.maximum(squares, np.finfo(np.float64).tiny)


def _share(part: Floats, whole: Floats) -> Floats:
    return part / np.where(whole > 0, whole, np.inf)


def _resampled(features: Floats, resamples: int, seed: int) -> Floats:
    """(S, F) sums of the features (N, F) of N rows drawn with replacement."""
    rng = np.random.default_rng(seed)
    n = len(features)
    resamples = min(resamples, max(_FEWEST, _DRAWS // n))
    sums = np.empty((resamples, features.shape[1]))
    for place in range(resamples):
        sums[place] = np.bincount(rng.integers(0, n, n), minlength=n) @ features
    return sums


def _interval(value: Floats, drawn: Floats, confidence: float) -> Interval:
    if float(np.ptp(drawn)) == 0.0 and float(drawn[0]) == float(value):
        return Interval(float(value), float(value), confidence, "none")
    return percentile(drawn, confidence)
