"""ADCC (Poppi et al. 2021, arXiv:2104.10252)."""

from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Explain, Score, Space
from camkit_metrics.average_drop import average_drop
from camkit_metrics.coherency import coherency
from camkit_metrics.complexity import complexity


@plugin.metric("adcc", paper="arXiv:2104.10252", higher_is_better=True, unit="share")
def adcc(
    heatmaps: Tensor,
    images: Tensor,
    pixels: Tensor,
    answers: Answers,
    explain: Explain,
    *,
    score: Score = "probability",
    space: Space = "images",
) -> Tensor:
    """ADCC: the harmonic mean of coherency, simplicity and kept confidence.

    3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - average drop)), for each sample. Definition ``adcc/1``.

    0 where one of the three is 0. `score` and `space`: as for average_drop. NaN: a flat heatmap, and an answer about
    the image that is not positive.
    """
    coherent = coherency(heatmaps, images, pixels, explain, space=space)
    kept = 1 - average_drop(heatmaps, answers, score=score, space=space)
    return 3 / (1 / coherent + 1 / (1 - complexity(heatmaps)) + 1 / kept)
