"""A control for attacks; not from a paper."""

import torch
from torch import Tensor

from camkit import plugin


@plugin.attack("random-signs", norm="linf", paper="none")
def random_signs(pixels: Tensor, epsilon: float, *, seed: int = 0) -> Tensor:
    """Every pixel moved by epsilon, up or down at random: an attack that succeeds no more often has found nothing.

    All images of a batch get the same draw, so that a batch gives what single images give.
    """
    signs = torch.randint(0, 2, pixels.shape[1:], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return pixels + epsilon * signs.to(pixels)
