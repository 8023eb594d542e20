"""Rank correlations over a few teachers, and how sure one can be of them and of differences between students."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000
NORMAL_975 = 1.959964


def rank_correlation(x: Sequence[float], y: Sequence[float], *, given: Sequence[float] | None = None) -> float:
    """Spearman's rho; ties get their mean rank. NaN where one side is constant.

    Args:
        x, y: values of the same things.
        given: a third value of each; what the ranks share with its ranks is taken out first (partial correlation).
    """
    return _cosine(*_sides(x, y, given))


def permutation_p(
    x: Sequence[float],
    y: Sequence[float],
    *,
    given: Sequence[float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of Spearman's rho: how often a random pairing is as far from 0. NaN where rho is.

    It takes the pairs as exchangeable. Teachers that are epochs of one run are not quite, so the truth is less sure.
    """
    left, right = _sides(x, y, given)
    found = _cosine(left, right)
    if math.isnan(found):
        return float("nan")
    shuffled = np.random.default_rng(seed).permuted(np.tile(right, (draws, 1)), axis=1)
    drawn = shuffled @ left / math.sqrt(float(left @ left) * float(right @ right))
    return (1 + int((np.abs(drawn) >= abs(found) - 1e-12).sum())) / (draws + 1)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation over seeds, taken as common to all groups, and its degrees of freedom; (NaN, 0) if unknown."""
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    if freedom == 0:
        return float("nan"), 0
    squares = sum((len(group) - 1) * statistics.variance(group) for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom), freedom


def half_width(sd: float, freedom: int, first: int, second: int) -> float:
    """Of the 95 % interval of a difference of two means over `first` and `second` seeds; NaN without an sd."""
    return t_975(freedom) * sd * math.sqrt(1 / first + 1 / second) if freedom else float("nan")


def t_975(freedom: int) -> float:
    """97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else Hill's expansion (within 1 %)."""
    if freedom < 1:
        return float("nan")
    if freedom <= 2:
        return (12.7062, 4.3027)[freedom - 1]
    z, n = NORMAL_975, float(freedom)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / n**power for power, term in enumerate(terms))


def _sides(
    x: Sequence[float], y: Sequence[float], given: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centred ranks of both, without what they share with those of `given`."""
    left, right = _ranks(x), _ranks(y)
    if given is not None:
        third = _ranks(given)
        size = float(third @ third)
        if size > 0:
            left, right = (side - float(side @ third) / size * third for side in (left, right))
    return left, right


def _cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    size = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / size if size > 1e-9 else float("nan")


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Centred on 0."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2.0)[inverse]
    ranks -= ranks.mean()
    return ranks
