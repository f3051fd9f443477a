"""Average drop (Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063)."""

from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, Space, is_flat, judged


@plugin.metric("average_drop", paper="arXiv:1710.11063", higher_is_better=False, unit="share")
def average_drop(
    heatmaps: Tensor, answers: Answers, *, score: Score = "probability", space: Space = "images"
) -> Tensor:
    """Average drop: the share of the confidence that is lost when only what the map shows is left.

    max(0, y - o) / y, where y is the answer about the image and o that about the image times its heatmap; the paper
    gives it in percent. Definition ``average-drop/1``.

    A small map loses much, a map of ones nothing, so that it says little without complexity. `score` is what is
    compared, `space` what is multiplied: the normalised ``images``, where 0 is the mean colour, or ``pixels``, where
    it is black. NaN: a flat heatmap, and an answer y that is not positive.
    """
    before, after = answers.before(score), answers.masked(heatmaps, score=score, space=space)
    return judged((before - after).clamp(min=0) / before, (before > 0) & ~is_flat(heatmaps))
