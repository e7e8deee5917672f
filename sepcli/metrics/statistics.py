"""Whether one system is better than another: Wilcoxon's signed-rank test, the paired bootstrap, Holm's correction.

The unit is the song: `a` and `b` hold one score per song, after aggregation over frames, in the same order of songs.
Pairs in which either score is NaN or infinite are left out. Songs of several training seeds are not independent: do
not pool them.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sepcli.errors import UsageError

Statistic = Literal["median", "mean"]

EXACT = 50  # songs up to which the exact distribution is used


class Wilcoxon(NamedTuple):
    """`statistic` is the smaller of the rank sums, `p` two-sided, `songs` the pairs compared (also those without
    difference)."""

    statistic: float
    p: float
    songs: int


class Interval(NamedTuple):
    """A point estimate in dB and its 95 % percentile interval."""

    point: float
    low: float
    high: float


class Bootstrap(NamedTuple):
    """`of_differences`: median (or mean) of a - b; `between`: median of a less median of b, another thing."""

    of_differences: Interval
    between: Interval


def validate(a: Sequence[float], b: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The pairs of finite scores as two arrays; UsageError where the lengths differ or no pair is left."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(f"scores of {first.shape} and {second.shape} songs cannot be paired", "give one score a song")
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        raise UsageError("no song has a score in both evaluations", "compare evaluations of the same songs")
    return first[both], second[both]


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> Wilcoxon:
    """Two-sided signed-rank test (Wilcoxon 1945) of whether a - b is symmetric about 0.

    Pairs without difference are dropped, ties share the mean of their ranks. p is exact up to 50 songs where there are
    neither, else normal without continuity correction; 1 where no pair differs.
    """
    first, second = validate(a, b)
    difference = first - second
    songs, difference = len(difference), difference[difference != 0]
    n = len(difference)
    if n == 0:
        return Wilcoxon(0.0, 1.0, songs)
    _, inverse, counts = np.unique(np.abs(difference), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    statistic = float(min(ranks[difference > 0].sum(), ranks[difference < 0].sum()))
    if n == songs <= EXACT and counts.max() == 1:
        return Wilcoxon(statistic, _exact(int(statistic), n), songs)
    variance = n * (n + 1) * (2 * n + 1) / 24 - float((counts**3 - counts).sum()) / 48
    z = (statistic - n * (n + 1) / 4) / math.sqrt(variance)
    return Wilcoxon(statistic, min(1.0, math.erfc(-z / math.sqrt(2))), songs)


def _exact(statistic: int, n: int) -> float:
    """Share of the 2^n sign patterns whose smaller rank sum is at most `statistic`."""
    ways = [1] + [0] * (n * (n + 1) // 2)  # ways[k]: subsets of the ranks 1..n that sum to k
    for rank in range(1, n + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return min(1.0, 2 * sum(ways[: statistic + 1]) / (1 << n))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], statistic: Statistic = "median", *, count: int = 10_000, seed: int = 0
) -> Bootstrap:
    """95 % intervals for how far `a` is ahead of `b`: songs are drawn with replacement, the same for both."""
    if statistic not in ("median", "mean"):
        raise UsageError(f"statistic = {statistic!r} is unknown", "it is median or mean")
    first, second = validate(a, b)
    of = np.median if statistic == "median" else np.mean
    drawn = np.random.default_rng(seed).integers(len(first), size=(count, len(first)))
    differences = of((first - second)[drawn], axis=1)
    between = of(first[drawn], axis=1) - of(second[drawn], axis=1)
    return Bootstrap(
        _interval(float(of(first - second)), differences), _interval(float(of(first) - of(second)), between)
    )


def _interval(point: float, samples: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(point, float(low), float(high))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979), in the order given; NaN where a test was not made.

    The smallest is multiplied by their number m, the next by m - 1, ...; none falls below the one before it.
    """
    order = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=lambda index: p[index])
    corrected, floor = [math.nan] * len(p), 0.0
    for place, index in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - place) * p[index]))
        corrected[index] = floor
    return corrected
