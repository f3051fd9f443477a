"""Pixels taken away or put in, in the order of a heatmap."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from camkit.metrics import Answers, Score, Space

Ground = Literal["mean", "black", "blurred"]


def ranks(heatmaps: Tensor) -> Tensor:
    """The place of each pixel in the order from the highest value to the lowest, int64 [B, H, W] from 0.

    Equal values keep the order of the image, row by row.
    """
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(heatmaps.shape)


def scene(ground: Ground, images: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Space]:
    """Images [B, C, H, W], what is seen where they are not, and the space that both are in."""
    if ground == "black":
        return pixels, torch.zeros_like(pixels), "pixels"
    if ground == "mean":
        return images, torch.zeros_like(images), "images"
    # imported for a second and a half, which only who asks for it pays
    from torchvision.transforms.functional import gaussian_blur

    return images, gaussian_blur(images, [11, 11], [5.0, 5.0]), "images"


def area_under_curve(
    answers: Answers, step: Callable[[int], Tensor], pixels: int, steps: int, *, score: Score, space: Space
) -> Tensor:
    """The area [B] under the answers about ``step(count)``, with 0 to all `pixels` in `steps` equal parts.

    By trapezoids, over the share of the image: a sure answer throughout has the area 1. Counts are rounded up.
    """
    counts = [-(-pixels * place // steps) for place in range(steps + 1)]
    curve = answers.map(lambda place: step(counts[place]), len(counts), score=score, space=space)
    shares = torch.tensor(counts, dtype=curve.dtype, device=curve.device) / pixels
    return torch.trapezoid(curve, shares, dim=1)
