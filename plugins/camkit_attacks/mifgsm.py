"""Momentum iterative FGSM (Dong et al., CVPR 2018, arXiv:1710.06081)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat, ascend


@plugin.attack("mifgsm", norm=("linf", "l2"), paper="arXiv:1710.06081")
def mifgsm(
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: float | None = None,
    decay: float = 1.0,
) -> Tensor:
    """MI-FGSM: the step goes along a running sum of gradients, each divided by its L1 norm (eq. 6 and 7; L2: eq. 9).

    `decay` is by how much the sum shrinks before each step. The norm is taken as a mean, which changes no direction.
    """
    velocity = torch.zeros_like(pixels)

    def direction(moved: Tensor) -> Tensor:
        gradient = loss.gradient(moved)
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
        velocity.mul_(decay).add_(gradient / torch.where(size > 0, size, torch.ones_like(size)))
        return velocity

    size = threat.step_size(step_size, steps)
    return ascend(loss, pixels, steps=steps, step_size=size, direction=direction)
