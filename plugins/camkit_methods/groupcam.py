"""Group-CAM (Zhang et al., 2021, arXiv:2103.13859)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import ModelScores
from camkit_methods.perturbed import stretched

RADIUS, SIGMA = 25, 50.0


@plugin.method("groupcam", paper="arXiv:2103.13859")
def groupcam(
    activations: Tensor,
    gradients: Tensor,
    images: Tensor,
    model_scores: ModelScores,
    *,
    groups: PositiveInt = 32,
    percentile: Annotated[float, Field(ge=0, le=100)] = 70.0,
) -> Tensor:
    """Group-CAM: masks of neighbouring channels summed as in Grad-CAM, weighted by what each adds to a blurred image.

    Of each group's sum the positive values above its percentile stay; resized to the image and stretched to [0, 1] they
    are its mask. Its weight is the score of the image that is sharp inside the mask and blurred outside (Gaussian,
    51 x 51, sigma 50), minus the score of the blurred image. The map [B, H, W] is the weighted sum of the masks. The
    paper scores with the class's probability: take one as the target.
    """
    height, width = images.shape[2:]
    sums = [part.sum(dim=1) for part in weighted(activations, gradients.mean(dim=(2, 3))).chunk(groups, dim=1)]
    maps = torch.stack(sums, dim=1).clamp(min=0)
    # what is above the interpolated percentile is above the value below it: no rounding can decide
    rank = int(percentile * (maps[0, 0].numel() - 1) / 100)
    threshold = maps.flatten(2).sort(dim=2).values[:, :, rank, None, None]
    maps = maps.masked_fill(maps <= threshold, 0)
    blurred = _blurred(images)

    def mask(i: int) -> Tensor:
        return stretched(maps[:, i : i + 1], (height, width))

    def make(i: int) -> Tensor:
        return blurred if i == len(sums) else torch.lerp(blurred, images, mask(i).expand_as(images))

    scores = model_scores.map(make, len(sums) + 1)
    weights = scores[:, :-1] - scores[:, -1:]
    result = images.new_zeros(len(images), height, width)
    for i in range(len(sums)):
        result += weights[:, i, None, None] * mask(i)[:, 0]
    return result


def _blurred(images: Tensor) -> Tensor:
    for dimension in (2, 3):
        # a border can be mirrored only as far as the image reaches
        radius = min(RADIUS, images.shape[dimension] - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = (-(offsets / SIGMA).square() / 2).exp()
        down = dimension == 2
        padded = F.pad(images, (0, 0, radius, radius) if down else (radius, radius, 0, 0), mode="reflect")
        shape = (1, 1, -1, 1) if down else (1, 1, 1, -1)
        filtered = F.conv2d(padded.flatten(0, 1)[:, None], (kernel / kernel.sum()).view(shape))
        images = filtered.view_as(images)
    return images
