"""How often a method loses less of the confidence than the others (Chattopadhay et al. 2018, arXiv:1710.11063)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, Space, nanmean
from camkit_metrics.average_drop import average_drop


def wins(drops: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each method the share of samples on which its drop is the smallest: [methods, n] to [methods].

    Those who tie share the win. A sample that one of the methods leaves unjudged is nobody's.
    """
    smallest = drops == drops.min(axis=0)
    shares = smallest / np.maximum(smallest.sum(axis=0), 1)
    return nanmean(np.where(np.isnan(drops).any(axis=0), np.nan, shares), axis=1)


@plugin.metric("win_rate", paper="arXiv:1710.11063", higher_is_better=True, unit="share", reduce=wins, least_methods=2)
def win_rate(heatmaps: Tensor, answers: Answers, *, score: Score = "probability", space: Space = "images") -> Tensor:
    """Win rate: the share of samples on which a method has the smallest drop of all methods that are measured.

    A sample's value is its average drop, which is compared between methods. Definition ``win-rate/1``.

    Methods that tie share the win, so that the rates add up to 1. `score` and `space`: as for average_drop. NaN: as
    there; a sample that one method leaves unjudged counts for none.
    """
    return average_drop(heatmaps, answers, score=score, space=space)
