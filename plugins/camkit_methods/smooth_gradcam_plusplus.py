"""Smooth Grad-CAM++ (Omeiza et al., 2019, arXiv:1908.01224)."""

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.channels import divide, weighted
from camkit.contracts import Samples
from camkit_methods.perturbed import normal


@plugin.method("smoothgradcam++", paper="arXiv:1908.01224")
def smooth_gradcam_plusplus(
    images: Tensor,
    samples: Samples,
    *,
    count: PositiveInt = 4,
    std: NonNegativeFloat = 0.15,
    seed: NonNegativeInt = 0,
) -> Tensor:
    """Smooth Grad-CAM++: Grad-CAM++ on activations and derivatives averaged over noisy versions of the image.

    With A, D1, D2, D3 the means of the activations and of g, g^2, g^3 over `count` versions, the weight of a position
    is D2 / (2 D2 + D3 sum(A)) times the positive part of D1. The paper prints D1 above the line too, where Grad-CAM++,
    which this is without noise, has D2. `std` is the noise's standard deviation as a share of the image's own range.
    The noise is the same for all images. torchcam takes the last version's gradient and activations alone, and noise of
    0.3 in the unit of the input.
    """
    spread = std * (images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True))
    shape = (1, *images.shape[1:])
    path = samples(lambda i: images + spread * normal(shape, images, seed, i), count)
    first, gradients = next(path)
    # cubes of small gradients would underflow; the scale cancels
    scale = gradients.abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(scale == 0, 1, scale)
    total = _moments(first, gradients / scale)
    for activations, gradients in path:
        total += _moments(activations, gradients / scale)
    mean, slope, second, third = total / count
    alpha = divide(second, 2 * second + scale * third * mean.sum(dim=(2, 3), keepdim=True))
    return weighted(mean, (alpha * scale * slope.clamp(min=0)).sum(dim=(2, 3)))


def _moments(activations: Tensor, gradients: Tensor) -> Tensor:
    return torch.stack((activations, gradients, gradients.square(), gradients**3))
