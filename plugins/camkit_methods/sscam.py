"""SS-CAM, Smoothed Score-CAM (Wang et al., 2020, arXiv:2006.14255)."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import ModelScores
from camkit_methods.perturbed import Weighting, channel_weights, increases, normal


@plugin.method("sscam", paper="arXiv:2006.14255")
def sscam(
    activations: Tensor,
    images: Tensor,
    model_scores: ModelScores,
    *,
    noise: Literal["mask", "input"] = "mask",
    std: NonNegativeFloat = 2.0,
    samples: PositiveInt = 35,
    seed: NonNegativeInt = 0,
    weights: Weighting = "softmax",
) -> Tensor:
    """SS-CAM: Score-CAM with each channel's increase of confidence averaged over noisy versions.

    Gaussian noise is added to the ``mask``, stretched to [0, 1] (the paper's first variant, as in torchcam), or to the
    masked ``input`` (its second). It has the standard deviation `std`; the authors' code divides by the range of what
    it is added to and squares, (std / range)^2. Every channel and version has noise of its own, the same for all
    images. The model runs `samples` times as often as for Score-CAM.
    """
    height, width = images.shape[2:]

    def perturb(mask: Tensor, channel: int, version: int) -> Tensor:
        if noise == "mask":
            return images * (mask + std * normal((1, 1, height, width), images, seed, channel, version))
        return images * mask + std * normal((1, *images.shape[1:]), images, seed, channel, version)

    increase = increases(activations, images, model_scores, perturb, versions=samples)
    return weighted(activations, channel_weights(increase, activations, weights))
