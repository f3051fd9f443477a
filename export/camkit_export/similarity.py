"""How alike two maps look, whatever their scale: the order of their values, and where they are highest; numpy alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

# The share of an image that its highest values are said to cover.
TOP_SHARE = 0.2


def rank_correlation(one: NDArray[Any], other: NDArray[Any]) -> Doubles:
    """Spearman's rank correlation of each pair of maps, both [B, ...], as [B] in [-1, 1].

    Equal values share the mean of their ranks. Where a map is the same everywhere, or holds a NaN, it is NaN.
    """
    first, second = (np.stack([_ranks(single) for single in maps.reshape(len(maps), -1)]) for maps in (one, other))
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    found: Doubles = np.divide((first * second).sum(axis=1), scale, out=np.full(len(scale), np.nan), where=scale > 0)
    return found


def top_area_overlap(one: NDArray[Any], other: NDArray[Any], share: float = TOP_SHARE) -> Doubles:
    """Intersection over union of the areas in which each pair of maps, both [B, ...], is highest, as [B] in [0, 1].

    A map's area is that of its highest `share` of values. Values that equal the last of them belong to it, and the
    map's lowest value never does: of a heatmap that is zero almost everywhere the area is what is not. Where both maps
    are the same everywhere there is no area: NaN.
    """
    first, second = (_top(maps.reshape(len(maps), -1), share) for maps in (one, other))
    union = (first | second).sum(axis=1)
    found: Doubles = np.divide((first & second).sum(axis=1), union, out=np.full(len(union), np.nan), where=union > 0)
    return found


def _ranks(values: NDArray[Any]) -> Doubles:
    """The rank of each value [N], from 0; NaN everywhere if one is NaN."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1
    return np.asarray((last - (count - 1) / 2)[place], dtype=np.float64)


def _top(values: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """Which of the values [B, N] are among the highest share of their map."""
    place = values.shape[1] - max(1, round(share * values.shape[1]))
    least = np.partition(values, place, axis=1)[:, place : place + 1]
    return np.asarray((values >= least) & (values > values.min(axis=1, keepdims=True)))
