"""Insertion (Petsiuk et al. 2018, RISE, arXiv:1806.07421)."""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, is_flat, judged
from camkit_metrics._removal import Ground, area_under_curve, ranks, scene


@plugin.metric("insertion", paper="arXiv:1806.07421", higher_is_better=True, unit="share")
def insertion(
    heatmaps: Tensor,
    images: Tensor,
    pixels: Tensor,
    answers: Answers,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    start: Ground = "blurred",
    score: Score = "probability",
) -> Tensor:
    """Insertion AUC: the area under the confidence while the pixels come in, the heatmap's highest first.

    The integral of the answer over the share of the image that is there, by trapezoids over `steps` equal parts.
    Definition ``insertion/1``.

    What is there before is what `start` says: the image ``blurred`` (11x11, sigma 5, as the authors' code has it), the
    ``mean`` colour, or ``black``. Equal values come row by row. NaN: a flat heatmap.
    """
    place = ranks(heatmaps).unsqueeze(1)
    seen, hidden, space = scene(start, images, pixels)
    area = area_under_curve(
        answers, lambda count: seen.where(place < count, hidden), heatmaps[0].numel(), steps, score=score, space=space
    )
    return judged(area, ~is_flat(heatmaps))
