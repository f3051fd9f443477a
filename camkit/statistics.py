"""How sure a mean is: bootstrap confidence intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# Resampled values in one piece: 8 MB of indices.
_PIECE = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A statistic with its percentile bootstrap interval.

    Attributes:
        value: the statistic of all values; NaN where there are none.
        low, high: the interval; equal to the value where there is one value only.
        count: how many values there were; NaN is none.
    """

    value: float
    low: float
    high: float
    count: int


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def bootstrap(
    values: ArrayLike, statistic: Statistic = mean, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """A statistic of independent values, one per image, and how far chance may have moved it.

    The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3): the values
    are drawn again with replacement, as many as there are, and the interval holds the middle of what comes out.

    Args:
        values: [n]; NaN where an image cannot be judged.
        statistic: of values [..., n], over the last axis.
        level: the share of the resampled statistics inside the interval.
        draws: how often is resampled.
        seed: equal seeds give equal intervals.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    judged = given[np.isfinite(given)]
    if len(judged) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    random = np.random.default_rng(seed)
    rows = max(1, _PIECE // len(judged))
    drawn = [
        statistic(judged[random.integers(0, len(judged), (min(rows, draws - start), len(judged)))])
        for start in range(0, draws, rows)
    ]
    outside = (1 - level) / 2
    low, high = np.quantile(np.concatenate(drawn), [outside, 1 - outside])
    return Interval(float(statistic(judged)), float(low), float(high), len(judged))


def bootstrap_together(
    values: ArrayLike, statistic: Statistic, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> list[Interval]:
    """What `bootstrap` gives, where a statistic sees several series of the same samples at once.

    Args:
        values: [series, n, ...]; NaN where a sample cannot be judged. Drawn are samples, the same for all series.
        statistic: of such an array, one value for each series, [series].
        level: as for `bootstrap`.
        draws: likewise.
        seed: likewise.
    """
    given = np.asarray(values, dtype=np.float64)
    counts = np.isfinite(given.reshape(*given.shape[:2], -1)).any(axis=2).sum(axis=1)
    random = np.random.default_rng(seed)
    size = given.shape[1]
    drawn = np.stack([statistic(given[:, random.integers(0, size, size)]) for _ in range(draws)])
    found = np.broadcast_to(statistic(given), counts.shape)
    outside = (1 - level) / 2
    intervals = []
    for series, (value, count) in enumerate(zip(found, counts, strict=True)):
        own = drawn[:, series]
        own = own[np.isfinite(own)]
        ends = np.quantile(own, [outside, 1 - outside]) if len(own) else (np.nan, np.nan)
        intervals.append(Interval(float(value), float(ends[0]), float(ends[1]), int(count)))
    return intervals


def words(interval: Interval, *, signed: bool = False) -> str:
    """A value with its interval, ``0.512 [0.430, 0.590]``, or with signs; a dash where nothing could be judged."""
    if interval.count == 0:
        return "\N{EN DASH}"
    # the sum leaves no minus before a zero
    value, low, high = (
        format(round(number, 3) + 0.0, "+.3f" if signed else ".3f")
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]"
