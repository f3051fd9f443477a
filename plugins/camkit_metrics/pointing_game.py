"""The pointing game (Zhang et al., ECCV 2016, arXiv:1608.00507)."""

import torch
from torch import Tensor

from camkit import plugin


@plugin.metric("pointing_game", paper="arXiv:1608.00507", higher_is_better=True)
def pointing_game(heatmaps: Tensor, regions: Tensor, *, tolerance: int = 0) -> Tensor:
    """1 where the heatmap's peak lies in the region of the explained class, else 0.

    Of several equal peaks the first counts, row by row. `tolerance` widens the region by that many pixels (the paper
    takes 15 on photos). A sample without a region, or with a flat heatmap, has no peak to judge: NaN.
    """
    widened = regions.float().unsqueeze(1)
    if tolerance:
        widened = torch.nn.functional.max_pool2d(widened, 2 * tolerance + 1, stride=1, padding=tolerance)
    flat = heatmaps.flatten(1)
    hit = widened.flatten(1).gather(1, flat.argmax(dim=1, keepdim=True))[:, 0]
    judged = regions.flatten(1).any(dim=1) & (flat.amax(dim=1) > flat.amin(dim=1))
    return torch.where(judged, hit, torch.full_like(hit, torch.nan))
