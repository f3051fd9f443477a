"""Random noise, the baseline that an attack has to beat."""

import torch
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat


@plugin.attack("noise", norm=("linf", "l2"), paper="none: the baseline", black_box=True)
def noise(pixels: Tensor, loss: Loss, threat: Threat, *, draws: int = 1, seed: int = 0) -> Tensor:
    """Noise of the full size: every value moved by epsilon up or down, or a direction drawn at random.

    With several `draws`, the first that fools the model counts. All images get the same draw.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = pixels
    for _ in loss.steps(draws):
        loss(moved)
        change = threat.steepest(torch.randn(1, *pixels.shape[1:], generator=generator).to(pixels))
        moved = (pixels + threat.epsilon * change).clamp(0, 1)
    return moved
