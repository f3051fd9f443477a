"""Attacks on the explanation alone (Ghorbani et al., AAAI 2019, arXiv:1710.10547)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from camkit import plugin
from camkit.attacks import Explain, Loss, steer
from camkit.steerable import overlap, strongest


@plugin.attack("fragile-map", norm="linf", paper="arXiv:1710.10547", goals=("untargeted",), moves="explanation")
def fragile_map(
    pixels: Tensor,
    loss: Loss,
    explain: Explain,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    step_size: float | None = None,
    aim: Literal["top", "centre"] = "top",
    share: Annotated[float, Gt(0), Lt(1)] = 0.2,
    softplus: float | None = 30.0,
) -> Tensor:
    """Iterative feature importance attack: signed steps that move the map while the prediction stays (algorithm 1).

    With `aim` top, the strength of the map at the `share` of its positions that were the strongest is lowered; with
    centre, its centre of mass is moved. The step after which the label is still predicted and the strongest positions
    have changed most is returned. ReLUs are replaced by softplus with this beta, which the paper does, too.
    """
    before = explain(pixels)
    marked = strongest(before, share)
    home = _centre(before)

    def dissimilarity(maps: Tensor, logits: Tensor) -> Tensor:
        if aim == "centre":
            return (_centre(maps) - home).square().sum(dim=1)
        return -(_shares(maps) * marked).sum(dim=(1, 2))

    def gone(maps: Tensor) -> Tensor:
        return -overlap(before, maps, share)

    return steer(explain, loss, before, dissimilarity, gone, steps=steps, step_size=step_size, softplus=softplus)


def _shares(maps: Tensor) -> Tensor:
    """Positive maps [B, h, w] with sum 1; the smallest value counts as nothing."""
    positive = maps - maps.amin(dim=(1, 2), keepdim=True)
    return positive / positive.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def _centre(maps: Tensor) -> Tensor:
    """The centre of mass of each map, row and column in shares of the sides, [B, 2]."""
    shares = _shares(maps)
    rows, columns = (torch.linspace(0, 1, side, device=maps.device, dtype=maps.dtype) for side in maps.shape[1:])
    return torch.stack([shares.sum(dim=2) @ rows, shares.sum(dim=1) @ columns], dim=1)
