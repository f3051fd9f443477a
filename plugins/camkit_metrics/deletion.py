"""Deletion (Petsiuk et al. 2018, RISE, arXiv:1806.07421)."""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, is_flat, judged
from camkit_metrics._removal import Ground, area_under_curve, ranks, scene


@plugin.metric("deletion", paper="arXiv:1806.07421", higher_is_better=False, unit="share")
def deletion(
    heatmaps: Tensor,
    images: Tensor,
    pixels: Tensor,
    answers: Answers,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    removed: Ground = "mean",
    score: Score = "probability",
) -> Tensor:
    """Deletion AUC: the area under the confidence while the pixels go, the heatmap's highest first.

    The integral of the answer over the share of the image that is gone, by trapezoids over `steps` equal parts.
    Definition ``deletion/1``.

    A gone pixel shows what `removed` says: the ``mean`` colour (0 of the normalised image, as the authors' code has
    it), ``black``, or the image ``blurred`` (11x11, sigma 5). Equal values go row by row. NaN: a flat heatmap.
    """
    place = ranks(heatmaps).unsqueeze(1)
    seen, hidden, space = scene(removed, images, pixels)
    area = area_under_curve(
        answers, lambda count: hidden.where(place < count, seen), heatmaps[0].numel(), steps, score=score, space=space
    )
    return judged(area, ~is_flat(heatmaps))
