"""RISE (Petsiuk et al., BMVC 2018, arXiv:1806.07421)."""

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.contracts import ModelScores


@plugin.method("rise", paper="arXiv:1806.07421")
def rise(
    images: Tensor,
    model_scores: ModelScores,
    *,
    masks: PositiveInt = 4000,
    grid: PositiveInt = 7,
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5,
    seed: NonNegativeInt = 0,
) -> Tensor:
    """RISE: the mean of random masks, each weighted by the score of the image that it leaves, [B, H, W].

    A mask is a grid of cells that are 1 with the probability `keep`, else 0, resized smoothly and shifted by a random
    part of a cell; the sum over masks is divided by their number times `keep`. All images see the same masks. The paper
    scores with the class's probability: take one as the target, for a constant in a logit does not cancel but adds
    noise that only more masks average out.
    """
    height, width = images.shape[2:]
    # rounded up, as in the authors' code: cells rounded down may not cover the image
    cells = (-(-height // grid), -(-width // grid))

    def mask(i: int) -> Tensor:
        generator = np.random.default_rng((seed, i))
        kept = torch.tensor(generator.random((1, 1, grid, grid)) < keep, dtype=images.dtype, device=images.device)
        large = F.interpolate(kept, [(grid + 1) * cell for cell in cells], mode="bilinear", align_corners=False)
        top, left = (int(generator.integers(cell)) for cell in cells)
        return large[:, :, top : top + height, left : left + width]

    scores = model_scores.map(lambda i: images * mask(i), masks)
    result = images.new_zeros(len(images), height, width)
    for i in range(masks):
        result += scores[:, i, None, None] * mask(i)[0]
    return result / (masks * keep)
