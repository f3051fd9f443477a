"""The adversarial patch (Brown et al., NIPS 2017 workshop, arXiv:1712.09665)."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss


@plugin.attack("patch", norm="patch", paper="arXiv:1712.09665")
def adversarial_patch(
    pixels: Tensor,
    loss: Loss,
    epsilon: float,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Gt(0)] = 0.05,
    places: Annotated[int, Ge(1)] = 4,
    seed: int = 0,
) -> Tensor:
    """Adversarial patch: a square that raises the loss wherever it is stuck on the image (eq. 1).

    Each image has a patch of its own, moved by `step_size` along the signs of the gradient, at one of `places` drawn at
    random, in turn; the paper's expectation over images, angles and sizes is left out. The first place at which it
    fools the model counts, else the one with the highest loss.
    """
    generator = torch.Generator().manual_seed(seed)
    _, channels, height, width = pixels.shape
    side = max(1, min(int(math.sqrt(epsilon * height * width)), height, width))
    corners = [
        (int(torch.randint(height - side + 1, (), generator=generator)), left)
        for left in torch.randint(width - side + 1, (places,), generator=generator).tolist()
    ]
    patch = torch.rand(1, channels, side, side, generator=generator).to(pixels).repeat(len(pixels), 1, 1, 1)

    def stuck(corner: tuple[int, int]) -> Tensor:
        moved = pixels.clone()
        moved[:, :, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = patch
        return moved

    for step in loss.steps(steps):
        top, left = corners[step % places]
        gradient = loss.gradient(stuck((top, left)))[:, :, top : top + side, left : left + side]
        patch = (patch + step_size * gradient.sign()).clamp(0, 1)
    images = torch.stack([stuck(corner) for corner in corners])
    best = torch.stack([loss(moved) for moved in images]).argmax(dim=0)
    return images[best, torch.arange(len(pixels), device=pixels.device)]
