"""Which rows train, which validate, which test: stratified by label, seeded, equal texts on one side.

A row's place depends on its text, its label and the seed, not on its place in the file nor on the machine.
The module knows fingerprints and label ids, and neither texts nor tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veneer.data.hashing import Groups, keyed_order

__all__ = ["Parts", "contradictions", "sample_rows", "split_rows", "strata_of_multi_hot"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Row numbers of each part, ascending, int64."""

    train: Ints
    validation: Ints
    test: Ints


def split_rows(
    groups: Groups, strata: Ints, *, validation_fraction: float, test_fraction: float, seed: int
) -> Parts:
    """Split rows so that each stratum has its share in each part.

    groups  rows that have to stay together
    strata  (n,) int64: the stratum of each row, such as its label's id; a group belongs to that of its first
            row

    Shares are handed out by largest remainder, so that a part's rows of a stratum differ from the exact share
    by less than one (where texts repeat, by less than the size of a group). A stratum with three or more
    different texts is in each part that is wanted; one with a single text trains.
    """
    stratum_of = strata[groups.first]
    n_strata = int(strata.max()) + 1 if len(strata) else 0
    rows_in = np.bincount(stratum_of, weights=groups.sizes, minlength=n_strata).astype(np.int64)
    texts_in = np.bincount(stratum_of, minlength=n_strata)
    for_validation = ((texts_in >= 3) & (validation_fraction > 0)).astype(np.int64)
    want_test = _largest_remainder(rows_in, texts_in, test_fraction, taken=for_validation)
    want_validation = _largest_remainder(rows_in, texts_in, validation_fraction, taken=want_test)
    part_of_group = np.zeros(len(groups.sizes), np.int8)
    shuffled = keyed_order(groups.keys, seed)
    by_stratum = shuffled[np.argsort(stratum_of[shuffled], kind="stable")]
    ends = np.cumsum(texts_in)
    for stratum in range(n_strata):
        members = by_stratum[ends[stratum] - texts_in[stratum] : ends[stratum]]
        for part, want in ((2, want_test[stratum]), (1, want_validation[stratum])):
            chosen = _fill(groups.sizes[members], int(want))
            part_of_group[members[chosen]] = part
            members = members[~chosen]
    part_of_row = part_of_group[groups.of_row]
    return Parts(*(np.flatnonzero(part_of_row == part).astype(np.int64) for part in (0, 1, 2)))


def _largest_remainder(rows_in: Ints, texts_in: Ints, fraction: float, taken: Ints) -> Ints:
    """How many rows of each stratum go to a part with this share of all rows (Hamilton's method)."""
    if fraction == 0 or not len(rows_in):
        return np.zeros_like(rows_in)
    quota = rows_in * fraction
    share = np.floor(quota).astype(np.int64)
    left = round(float(quota.sum())) - int(share.sum())
    most_left_over = np.argsort(share - quota, kind="stable")[:left]
    share[most_left_over] += 1
    share[(share == 0) & (texts_in >= 3)] = 1
    return np.clip(share, 0, np.where(texts_in >= 2, rows_in - taken - 1, 0))


def _fill(sizes: Ints, want: int) -> NDArray[np.bool_]:
    """Groups from the front whose rows add up to at most `want`, and as near to it as single texts bring it.

    At least one group is left over, for training.
    """
    chosen = np.zeros(len(sizes), np.bool_)
    if want <= 0:
        return chosen
    fits = np.cumsum(sizes) <= want
    chosen[fits] = True
    rest = want - int(sizes[fits].sum())
    singles = np.flatnonzero(~chosen & (sizes == 1))[:rest]
    chosen[singles] = True
    if not chosen.any() and len(sizes) > 1:  # every text repeats more often than rows are wanted
        chosen[np.argmin(sizes)] = True
    if chosen.all():
        chosen[np.flatnonzero(chosen)[-1]] = False
    return chosen


def strata_of_multi_hot(multi_hot: NDArray[np.uint8]) -> Ints:
    """The stratum of each row (n, labels): its combination of labels, or its rarest label where the
    combination is in fewer than three rows; rows without a label are a stratum of their own."""
    combinations, of_row, counts = np.unique(multi_hot, axis=0, return_inverse=True, return_counts=True)
    of_row = of_row.reshape(-1)
    frequency = multi_hot.sum(axis=0, dtype=np.int64)
    never = frequency.max(initial=0) + 1
    rarest = np.where(combinations > 0, frequency, never).argmin(axis=1) if combinations.shape[1] else 0
    rare = (counts < 3) & combinations.any(axis=1)
    stratum = np.where(rare, len(combinations) + rarest, np.arange(len(combinations)))
    return np.unique(stratum, return_inverse=True)[1].reshape(-1)[of_row].astype(np.int64)


def contradictions(groups: Groups, labels: Ints) -> tuple[int, Ints]:
    """How many texts stand with different labels, and their rows, (m,) int64. `labels` (n,) int64."""
    odd_row = labels != labels[groups.first[groups.of_row]]
    odd_groups = np.unique(groups.of_row[odd_row])
    return len(odd_groups), np.flatnonzero(np.isin(groups.of_row, odd_groups)).astype(np.int64)


def sample_rows(groups: Groups, n: int, seed: int) -> Ints:
    """`n` rows at random by the seed, ascending; copies of a text are in or out together, but for one text."""
    order = keyed_order(groups.keys, seed ^ 0x5EED)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.sort(np.argsort(rank[groups.of_row], kind="stable")[:n]).astype(np.int64)
