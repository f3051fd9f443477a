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
    rescale: Literal["channel", "layer"] = "channel",
) -> Tensor:
    """Full-Grad: gradient times image, and gradient times bias in every layer, each made a picture and added up.

    A picture is the magnitude, scaled to [0, 1] and upsampled to the image, so that the map [B, H, W] has no negative
    values. Scaled is each channel, as in the paper's formula and in grad-cam, or all channels of a layer together
    (`rescale`), as in the authors' code. The sum over channels is upsampled once: upsampling is linear.
    """
    per_channel = (2, 3) if rescale == "channel" else (1, 2, 3)
    total = images.new_zeros(images.shape[0], 1, *images.shape[2:])
    for term in (image_gradients * images, *bias_gradients):
        magnitude = term.abs()
        above = magnitude - magnitude.amin(dim=per_channel, keepdim=True)
        span = above.amax(dim=per_channel, keepdim=True)
        picture = divide(above, span.expand_as(above)).sum(dim=1, keepdim=True)
        total = total + F.interpolate(picture, size=total.shape[2:], mode="bilinear")
    return total[:, 0]
