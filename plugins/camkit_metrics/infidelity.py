"""Infidelity (Yeh et al., NeurIPS 2019, arXiv:1901.09392)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, is_flat, judged


@plugin.metric("infidelity", paper="arXiv:1901.09392", higher_is_better=False, unit="squared score")
def infidelity(
    heatmaps: Tensor,
    images: Tensor,
    answers: Answers,
    *,
    moved: Literal["square", "noise"] = "square",
    size: Annotated[float, Gt(0), Le(1)] = 0.2,
    samples: Annotated[int, Ge(1)] = 100,
    rescale: bool = True,
    score: Score = "probability",
    seed: int = 0,
) -> Tensor:
    """Infidelity: how far the map is from telling what a change of the image does to the answer (definition 1).

    The mean over changes I of (I · e - (f(x) - f(x - I)))², where I · e sums I times the heatmap over all values.
    Definition ``infidelity/1``.

    `moved` says what I is: a ``square`` of the image, with sides of `size` times its sides, that is set to the mean
    colour, anywhere inside; or ``noise``, normal with the deviation `size`. `rescale` multiplies the map by the factor
    that suits it best, as the authors' code does, since a heatmap has no unit. All samples move alike. NaN: a flat
    heatmap.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [_change(images, moved, size, generator) for _ in range(samples)]
    changes = (
        (lambda place: images * draws[place]) if moved == "square" else (lambda place: draws[place].expand_as(images))
    )
    predicted = torch.stack([(changes(place).sum(dim=1) * heatmaps).sum(dim=(1, 2)) for place in range(samples)], 1)
    answer = answers.before(score)[:, None] - answers.map(lambda place: images - changes(place), samples, score=score)
    if rescale:
        power = predicted.square().sum(dim=1)
        factor = (predicted * answer).sum(dim=1) / power.where(power > 0, 1.0)
        predicted = predicted * factor[:, None]
    return judged((predicted - answer).square().mean(dim=1), ~is_flat(heatmaps))


def _change(images: Tensor, moved: str, size: float, generator: torch.Generator) -> Tensor:
    """Which part of the images is taken off, [1, H, W] of 1 and 0; or the noise that is, [C, H, W]."""
    channels, height, width = images.shape[1:]
    if moved == "noise":
        return size * torch.randn(channels, height, width, generator=generator).to(images)
    sides = [max(1, round(size * side)) for side in (height, width)]
    top, left = (
        int(torch.randint(whole - side + 1, (), generator=generator))
        for whole, side in zip((height, width), sides, strict=True)
    )
    square = torch.zeros_like(images[0, :1])
    square[:, top : top + sides[0], left : left + sides[1]] = 1
    return square
