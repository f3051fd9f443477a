"""Refine-CAM's fusion (Domeniconi et al., 2026, arXiv:2605.14641)."""

import torch
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError


@plugin.fusion("product", paper="arXiv:2605.14641")
def product(maps: list[Tensor]) -> Tensor:
    """The product of the maps: only what all layers point at is shown, with the detail of the finest.

    grad-cam multiplies maps at the size of the image, torchcam at that of the largest map, as is done here.
    """
    stacked = torch.stack(maps)
    if bool((stacked < 0).any()):
        raise CamkitError(
            "The fusion 'product' was given negative values, of which two make a positive one; leave relu on."
        )
    return stacked.prod(dim=0)
