"""Diverse inputs iterative FGSM (Xie et al., CVPR 2019, arXiv:1803.06978)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat, ascend


@plugin.attack("difgsm", norm=("linf", "l2"), paper="arXiv:1803.06978")
def difgsm(
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: float | None = None,
    probability: Annotated[float, Ge(0), Le(1)] = 0.5,
    smallest: Annotated[float, Gt(0), Le(1)] = 0.9,
    seed: int = 0,
) -> Tensor:
    """DI-FGSM: each gradient is taken, with some probability, of the image shrunk and padded at random (eq. 5 and 6).

    `smallest` is the least share of its sides that the image is shrunk to. All images of a step are shrunk and padded
    alike. Only steps that show the image as it is can stop early.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    def direction(moved: Tensor) -> Tensor:
        diverse = float(torch.rand((), generator=generator)) < probability
        height, width = moved.shape[2:]
        gone = draw(height - round(smallest * height) + 1)
        share = 1 - gone / height
        small = (height - gone, max(1, round(width * share)))
        top, left = draw(height - small[0] + 1), draw(width - small[1] + 1)

        def shrunk(images: Tensor) -> Tensor:
            resized = F.interpolate(images, small, mode="bilinear", align_corners=False)
            return F.pad(resized, (left, width - small[1] - left, top, height - small[0] - top))

        return loss.gradient(moved, through=shrunk if diverse else None)

    size = threat.step_size(step_size, steps)
    return ascend(loss, pixels, steps=steps, step_size=size, direction=direction)
