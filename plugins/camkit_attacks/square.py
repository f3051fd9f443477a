"""Square Attack (Andriushchenko et al., ECCV 2020, arXiv:1912.00049)."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from camkit import plugin
from camkit.attacks import Goal, Loss, Threat, chosen

# After how many of 10,000 queries the squares' area is halved (section 5).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@plugin.attack("square", norm="linf", paper="arXiv:1912.00049", black_box=True)
def square(
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: Annotated[int, Ge(1)] = 1000,
    share: Annotated[float, Gt(0), Le(1)] = 0.8,
    seed: int = 0,
) -> Tensor:
    """Square Attack in Linf: random squares of plus or minus epsilon, kept where the margin grows (algorithms 1 and 2).

    It starts with vertical stripes. `share` is how much of the image the first square covers; the later ones shrink by
    the paper's schedule. All images are asked about the same squares.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = pixels.shape[1:]

    def signs(*shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(pixels)

    moved = (pixels + threat.epsilon * signs(1, channels, 1, width)).clamp(0, 1)
    highest = loss(moved, Goal.margin)
    for step in loss.steps(steps):
        area = share * 0.5 ** sum(10_000 * step / steps > place for place in _HALVINGS)
        side = min(max(round(math.sqrt(area * height * width)), 1), height, width)
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        tried = moved.clone()
        window = (..., slice(top, top + side), slice(left, left + side))
        tried[window] = (pixels[window] + threat.epsilon * signs(1, channels, 1, 1)).clamp(0, 1)
        margins = loss(tried, Goal.margin)
        moved = chosen(margins > highest, tried, moved)
        highest = torch.maximum(margins, highest)
    return moved
