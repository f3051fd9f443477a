"""Translation-invariant iterative FGSM (Dong et al., CVPR 2019, arXiv:1904.02884)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat, ascend


@plugin.attack("tifgsm", norm=("linf", "l2"), paper="arXiv:1904.02884")
def tifgsm(
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: float | None = None,
    side: Annotated[int, Ge(1)] = 15,
    sigma: Annotated[float, Gt(0)] = 3.0,
) -> Tensor:
    """TI-FGSM: the gradient is blurred, which stands for the mean over shifted images (eq. 5, 9 and 10).

    `side` is the kernel's side in pixels, an odd number; the Gaussian reaches its border at `sigma` deviations.
    """
    kernel = gaussian(side, sigma).to(pixels).expand(pixels.shape[1], 1, side, side)

    def direction(moved: Tensor) -> Tensor:
        return F.conv2d(loss.gradient(moved), kernel, padding="same", groups=pixels.shape[1])

    size = threat.step_size(step_size, steps)
    return ascend(loss, pixels, steps=steps, step_size=size, direction=direction)


def gaussian(side: int, sigma: float) -> Tensor:
    """A Gaussian kernel [side, side] with sum 1, whose border stands at `sigma` deviations."""
    bell = torch.exp(-(torch.linspace(-sigma, sigma, side) ** 2) / 2) if side > 1 else torch.ones(1)
    return torch.outer(bell, bell) / bell.sum() ** 2
