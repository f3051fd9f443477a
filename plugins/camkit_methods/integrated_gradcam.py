"""Integrated Grad-CAM (Sattarzadeh et al., ICASSP 2021, arXiv:2102.07805)."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import Note, Samples


@plugin.method("integrated-gradcam", paper="arXiv:2102.07805")
def integrated_gradcam(
    images: Tensor, samples: Samples, note: Note, *, steps: PositiveInt = 50, baseline: float = 0.0
) -> Tensor:
    """Integrated Grad-CAM: the mean of Grad-CAM maps along a straight path from a baseline to the image, [B, h, w].

    At each step the channels' mean gradients weigh what the activations have gained over those of the baseline; each
    step's map goes through the ReLU before the mean, so that the mean is never negative. The baseline is an image of
    one value in the unit of the model's input; 0 is black, or the mean colour where images are normalised. The authors'
    code takes the activations themselves, not what they gained.
    """
    start = torch.full_like(images, baseline)
    path = samples(lambda i: torch.lerp(start, images, i / steps), steps + 1)
    origin, _ = next(path)
    result = torch.zeros_like(origin[:, 0])
    for activations, gradients in path:
        result += weighted(activations - origin, gradients.mean(dim=(2, 3))).sum(dim=1).clamp(min=0)
    note(
        (result == 0).flatten(1).all(dim=1),
        "The map is zero everywhere: at no step of the path anything gained speaks for the target.",
    )
    return result / steps
