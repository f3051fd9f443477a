"""How concentrated a heatmap is; not from a paper."""

import math

import torch
from torch import Tensor

from camkit import plugin


@plugin.metric("spread", paper="none", higher_is_better=False)
def spread(heatmaps: Tensor) -> Tensor:
    """The root mean square distance of the heatmap's mass from its centre, as a share of the image's diagonal.

    0 is a single point; a heatmap that is even over the image has about 1 / sqrt(12) = 0.29, whatever the shape. A
    blank one has no centre: NaN. A low value says that a map is concentrated, not that it is right.
    """
    height, width = heatmaps.shape[1:]
    total = heatmaps.sum(dim=(1, 2))
    variance = torch.zeros_like(total)
    for size, other in ((height, 2), (width, 1)):
        mass = heatmaps.sum(dim=other)
        positions = torch.arange(size, device=mass.device, dtype=mass.dtype)
        centre = (mass * positions).sum(dim=1) / total
        variance = variance + (mass * (positions - centre[:, None]) ** 2).sum(dim=1) / total
    return variance.sqrt() / math.hypot(height, width)
