"""The pointing game (Zhang et al., ECCV 2016, arXiv:1608.00507)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.metrics import is_flat, judged


@plugin.metric("pointing_game", paper="arXiv:1608.00507", higher_is_better=True, unit="share")
def pointing_game(heatmaps: Tensor, regions: Tensor, *, tolerance: Annotated[int, Ge(0)] = 0) -> Tensor:
    """Pointing game: 1 where the heatmap's peak lies in the boxes of the explained class, else 0.

    Hits / (hits + misses) over the data set. Definition ``pointing-game/1``.

    Of several equal peaks the first counts, row by row. `tolerance` widens the boxes by that many pixels (the paper
    takes 15 on photos). NaN: a flat heatmap, which has no peak, and a sample without boxes, which is no hit.
    """
    widened = regions.float().unsqueeze(1)
    if tolerance:
        widened = torch.nn.functional.max_pool2d(widened, 2 * tolerance + 1, stride=1, padding=tolerance)
    hit = widened.flatten(1).gather(1, heatmaps.flatten(1).argmax(dim=1, keepdim=True))[:, 0]
    return judged(hit, regions.flatten(1).any(dim=1) & ~is_flat(heatmaps))
