"""Average gain (Zhang et al. 2023, Opti-CAM, arXiv:2301.07002)."""

from typing import Literal

from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Space, is_flat, judged


@plugin.metric("average_gain", paper="arXiv:2301.07002", higher_is_better=True, unit="share")
def average_gain(
    heatmaps: Tensor,
    answers: Answers,
    *,
    score: Literal["probability", "softmax", "sigmoid"] = "probability",
    space: Space = "images",
) -> Tensor:
    """Average gain: how much of the confidence that was missing is gained when only what the map shows is left.

    max(0, o - y) / (1 - y), the counterpart of average drop, with y and o as there; the paper gives it in percent.
    Where y is 1 nothing can be gained: 0. Definition ``average-gain/1``.

    `score` and `space`: as for average_drop. NaN: a flat heatmap.
    """
    before, after = answers.before(score), answers.masked(heatmaps, score=score, space=space)
    missing = 1 - before
    gained = (after - before).clamp(min=0) / missing.where(missing > 0, 1.0)
    return judged(gained, ~is_flat(heatmaps))
