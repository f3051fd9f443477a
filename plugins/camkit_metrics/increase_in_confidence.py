"""Increase in confidence (Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063)."""

from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, Space, is_flat, judged


@plugin.metric("increase_in_confidence", paper="arXiv:1710.11063", higher_is_better=True, unit="share")
def increase_in_confidence(
    heatmaps: Tensor, answers: Answers, *, score: Score = "probability", space: Space = "images"
) -> Tensor:
    """Increase in confidence: whether the model is surer of what the map shows than of the whole image.

    1 where y < o, else 0, with y and o as for average_drop; the paper gives the percentage of images. Definition
    ``increase-in-confidence/1``.

    `score` and `space`: as for average_drop. NaN: a flat heatmap.
    """
    before, after = answers.before(score), answers.masked(heatmaps, score=score, space=space)
    return judged((after > before).float(), ~is_flat(heatmaps))
