"""What methods share that score images masked by a layer's channels, or add noise to them."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.channels import divide
from camkit.contracts import ModelScores

Weighting = Literal["softmax", "increase"]
Perturb = Callable[[Tensor, int, int], Tensor]


def normal(shape: tuple[int, ...], like: Tensor, seed: int, *place: int) -> Tensor:
    """Standard normal draws of the dtype and device of `like`; the same ones for the same seed and place."""
    # NumPy's generator gives the same draws on every device, and a place of its own to each perturbation
    draws = np.random.default_rng((seed, *place)).standard_normal(shape)
    return torch.tensor(draws, dtype=like.dtype, device=like.device)


def stretched(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, n, h, w] resized to `size` (bilinear), then each stretched to [0, 1]; a constant one is zero."""
    large = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    lowest, highest = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
    return divide(large - lowest, (highest - lowest).expand_as(large))


def varying(maps: Tensor) -> Tensor:
    """Which maps of [B, n, h, w] are not constant, bool [B, n]."""
    return maps.amax(dim=(2, 3)) > maps.amin(dim=(2, 3))


def increases(
    activations: Tensor, images: Tensor, model_scores: ModelScores, perturb: Perturb, *, versions: int = 1
) -> Tensor:
    """The channel-wise increase of confidence, [B, K]: the score of the image masked with a channel less a black one's.

    ``perturb(mask, channel, version)`` masks the images with a channel's mask [B, 1, H, W] in [0, 1]; the scores of a
    channel's versions are averaged. A black image is one of zeros, as the model takes them. A constant channel has no
    mask, and no increase.
    """
    varies = varying(activations)
    channels = varies.any(dim=0).nonzero()[:, 0].tolist()
    black = len(channels) * versions
    height, width = images.shape[2:]

    def make(i: int) -> Tensor:
        if i == black:
            return torch.zeros_like(images)
        place, version = divmod(i, versions)
        channel = channels[place]
        return perturb(stretched(activations[:, channel : channel + 1], (height, width)), channel, version)

    scores = model_scores.map(make, black + 1)
    found = torch.zeros_like(varies, dtype=scores.dtype)
    masked = scores[:, :black].reshape(len(images), len(channels), versions).mean(dim=2)
    found[:, channels] = masked - scores[:, black:]
    return found.masked_fill(~varies, 0)


def channel_weights(increase: Tensor, activations: Tensor, weighting: Weighting) -> Tensor:
    """Weights [B, K] from each channel's increase of confidence: that itself, or its softmax over the channels.

    A constant channel, which masks nothing, takes no part in the softmax and has no weight.
    """
    if weighting == "increase":
        return increase
    constant = ~varying(activations)
    return increase.masked_fill(constant, -torch.inf).softmax(dim=1).masked_fill(constant, 0)
