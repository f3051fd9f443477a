"""Projected gradient descent (Madry et al., ICLR 2018, arXiv:1706.06083)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat, ascend, chosen


@plugin.attack("pgd", norm=("linf", "l2"), paper="arXiv:1706.06083")
def pgd(
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    step_size: float | None = None,
    restarts: Annotated[int, Ge(1)] = 1,
    random_start: bool = True,
    seed: int = 0,
) -> Tensor:
    """PGD: signed gradient steps (in L2 normalised ones), each projected back into the ball (section 2.1).

    It starts at a random point of the ball, the same for all images. `step_size` is in the unit of the threat model;
    by default 2.5 times the border's distance is divided among the steps. Of several `restarts`, the one that fools the
    model counts, else the one with the highest loss.
    """
    generator = torch.Generator().manual_seed(seed)
    size = threat.step_size(step_size, steps, reach=2.5)
    best, highest = pixels, torch.full((len(pixels),), -torch.inf, device=pixels.device)
    for _ in range(restarts):
        start = threat.random(generator) if random_start else pixels
        moved = ascend(loss, start, steps=steps, step_size=size)
        if restarts == 1:
            return moved
        values = loss(moved)
        best = chosen(values > highest, moved, best)
        highest = torch.maximum(values, highest)
    return best
