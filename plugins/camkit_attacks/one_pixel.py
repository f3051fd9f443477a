"""The one-pixel attack (Su et al., IEEE TEVC 2019, arXiv:1710.08864)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss


@plugin.attack("one-pixel", norm="l0", paper="arXiv:1710.08864", black_box=True)
def one_pixel(
    pixels: Tensor,
    loss: Loss,
    epsilon: float,
    *,
    steps: Annotated[int, Ge(1)] = 30,
    population: Annotated[int, Ge(4)] = 100,
    scale: Annotated[float, Gt(0)] = 0.5,
    seed: int = 0,
) -> Tensor:
    """One-pixel: the place and colour of epsilon pixels, found by differential evolution (section 3.2, eq. 3).

    A child is one candidate plus `scale` times the difference of two others, and replaces the candidate of its own
    number if its loss is higher. The paper takes a `population` of 400 and 100 steps. The draws are the same for all
    images.
    """
    generator = torch.Generator().manual_seed(seed)
    count, (batch, channels, height, width) = int(epsilon), pixels.shape

    def drawn(images: Tensor) -> Tensor:
        """The images [population * B, C, H, W] of candidates [population, B, count, 2 + C]."""
        changed = pixels.repeat(population, 1, 1, 1)
        flat = images.reshape(population * batch, count, 2 + channels)
        rows = torch.arange(len(flat), device=pixels.device)
        for pixel in flat.unbind(dim=1):
            row, column = (pixel[:, 0] * height).long(), (pixel[:, 1] * width).long()
            changed[rows, :, row.clamp(0, height - 1), column.clamp(0, width - 1)] = pixel[:, 2:].clamp(0, 1)
        return changed

    candidates = torch.rand(population, 1, count, 2 + channels, generator=generator)
    # colours are drawn around grey, as in the paper
    candidates[..., 2:] = 0.5 + 0.5 * torch.randn(population, 1, count, channels, generator=generator)
    candidates = candidates.to(pixels).expand(-1, batch, -1, -1).clone()
    values = loss(drawn(candidates)).reshape(population, batch)
    for _ in loss.steps(steps):
        first, second, third = (torch.randperm(population, generator=generator).to(pixels.device) for _ in range(3))
        children = candidates[first] + scale * (candidates[second] - candidates[third])
        # a place outside the image comes in again on the other side
        children[..., :2] = children[..., :2].remainder(1)
        children_values = loss(drawn(children)).reshape(population, batch)
        better = children_values > values
        candidates = torch.where(better[:, :, None, None], children, candidates)
        values = torch.maximum(children_values, values)
    best = values.argmax(dim=0)
    images = drawn(candidates).reshape(population, batch, channels, height, width)
    return images[best, torch.arange(batch, device=pixels.device)]
