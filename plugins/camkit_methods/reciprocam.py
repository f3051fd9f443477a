"""Recipro-CAM (Byun and Lee, 2022, arXiv:2209.14074) and ViT-Recipro-CAM (Byun and Lee, 2023, arXiv:2310.02588)."""

import torch
from torch import Tensor

from camkit import plugin
from camkit.contracts import Head

# What is left of a row or column, and of its neighbours; the kernel is the product of both.
SINGLE = (1.0, 0.0)
GAUSSIAN = (1 / 2, 1 / 4)


@plugin.method("reciprocam", paper="arXiv:2209.14074")
def reciprocam(activations: Tensor, head: Head, *, gaussian: bool = False) -> Tensor:
    """Recipro-CAM: at each position the score when nothing but that position's activations is left, [B, h, w].

    `gaussian` leaves a 3 x 3 neighbourhood instead, weighted by the paper's Gaussian kernel (1/4 in the middle). The
    authors' code scores with the class's probability and stretches the map to [0, 1]; here it holds the scores
    themselves, so a map that is negative everywhere asks for a probability as the target.
    """
    return _left_alone(activations, head, gaussian=gaussian)


@plugin.method("vit-reciprocam", paper="arXiv:2310.02588")
def vit_reciprocam(activations: Tensor, head: Head, *, gaussian: bool = True) -> Tensor:
    """ViT-Recipro-CAM: for each patch the score when nothing but that patch's token is left, [B, h, w].

    The class token and other prefix tokens stay, and so does all that bypasses the layer: behind a block's first norm
    that is the residual stream. By default the 3 x 3 neighbours stay too, weighted by a Gaussian kernel.
    """
    return _left_alone(activations, head, gaussian=gaussian)


def _left_alone(activations: Tensor, head: Head, *, gaussian: bool) -> Tensor:
    height, width = activations.shape[2:]
    middle, beside = GAUSSIAN if gaussian else SINGLE

    def left(length: int, places: Tensor) -> Tensor:
        distance = (torch.arange(length, device=places.device) - places[:, None]).abs()
        return (distance == 0) * middle + (distance == 1) * beside

    def mask(indices: Tensor) -> Tensor:
        rows, columns = left(height, indices // width), left(width, indices % width)
        return rows[:, None, :, None] * columns[:, None, None, :]

    scores: Tensor = head.masked(mask, height * width).unflatten(1, (height, width))
    return scores
