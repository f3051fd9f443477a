"""Explanations that are made to show something else (Dombrowski et al., NeurIPS 2019, arXiv:1906.07983)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.attacks import Explain, Loss, steer
from camkit.steerable import overlap


@plugin.attack("steered-map", norm="linf", paper="arXiv:1906.07983", goals=("untargeted",), moves="explanation")
def steered_map(
    pixels: Tensor,
    loss: Loss,
    explain: Explain,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    step_size: float | None = None,
    wanted: Literal["turned", "mirrored"] = "turned",
    output_weight: Annotated[float, Ge(0)] = 1.0,
    softplus: float | None = 30.0,
) -> Tensor:
    """Steered map: the squared distance to a map that is wanted, and to the former output, minimised (eq. 3).

    Wanted is the image's own map, `turned` by 180 degrees or `mirrored` left to right. `output_weight` is gamma; both
    distances are relative to what they are compared with. Signed steps stay in the ball, where the paper has none.
    ReLUs are replaced by softplus with this beta (section 4). The step after which the label is still predicted and the
    strongest positions are most those of the wanted map is returned.
    """
    before = explain(pixels)
    goal_map = before.flip(1, 2) if wanted == "turned" else before.flip(2)
    scale = goal_map.square().mean(dim=(1, 2)).clamp(min=torch.finfo(before.dtype).tiny)
    former: list[Tensor] = []

    def closeness(maps: Tensor, logits: Tensor) -> Tensor:
        # the first step shows the output as it was
        if not former:
            former.append(logits.detach())
        output = (logits - former[0]).square().mean(dim=1) / former[0].square().mean(dim=1)
        return -((maps - goal_map).square().mean(dim=(1, 2)) / scale + output_weight * output)

    def reached(maps: Tensor) -> Tensor:
        return overlap(goal_map, maps)

    return steer(explain, loss, before, closeness, reached, steps=steps, step_size=step_size, softplus=softplus)
