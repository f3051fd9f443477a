"""Full-Grad (Srinivas and Fleuret, NeurIPS 2019, arXiv:1905.00780)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from camkit import plugin
from camkit.channels import divide


@plugin.method("fullgrad", paper="arXiv:1905.00780")
def fullgrad(
    images: Tensor,
    image_gradients: Tensor,
    bias_gradients: tuple[Tensor, ...],
    *,
    rescale: Literal["layer", "channel"] = "layer",
) -> Tensor:
    """Full-Grad: gradient times image, and gradient times bias in every layer, each made a picture and added up.

    A picture is the magnitude, scaled to [0, 1] and upsampled to the image, so that the map [B, H, W] has no negative
    values. All channels of a layer are scaled together, as in the authors' code, which made the paper's pictures. Its
    formula, and grad-cam, scale each ``channel`` (`rescale`), where one that sees nothing but background counts as much
    as one that sees the object. The sum over channels is upsampled once: upsampling is linear.
    """
    scaled = (1, 2, 3) if rescale == "layer" else (2, 3)
    total = images.new_zeros(images.shape[0], 1, *images.shape[2:])
    for term in (image_gradients * images, *bias_gradients):
        above = term.abs()
        above -= above.amin(dim=scaled, keepdim=True)
        span = above.amax(dim=scaled, keepdim=True)
        # channels that are scaled alike may be added first
        above = above.sum(dim=1, keepdim=True) if rescale == "layer" else above
        picture = divide(above, span.expand_as(above)).sum(dim=1, keepdim=True)
        total = total + F.interpolate(picture, size=total.shape[2:], mode="bilinear")
    return total[:, 0]
