"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016, arXiv:1511.04599)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.attacks import Goal, Loss


@plugin.attack("deepfool", norm="smallest", paper="arXiv:1511.04599")
def deepfool(
    pixels: Tensor,
    loss: Loss,
    *,
    steps: Annotated[int, Ge(1)] = 50,
    overshoot: Annotated[float, Ge(0)] = 0.02,
    candidates: Annotated[int, Ge(1)] = 9,
) -> Tensor:
    """DeepFool: steps to the nearest border of the model, taken as linear at each of them (algorithm 2, eq. 8 and 9).

    Only the `candidates` classes with the highest scores are looked at, as in the paper's experiments. Of a sigmoid
    model, and towards a target, there is one border: the steps are those of the binary case (algorithm 1).
    """

    def nearest(goal: Goal, logits: Tensor) -> Tensor:
        margins = goal.margins(logits)
        # the label's own margin is minus infinity, so that it comes last
        return margins.topk(min(candidates, max(1, margins.shape[1] - 1)), dim=1).values

    change = torch.zeros_like(pixels)
    moved = pixels
    for _ in loss.steps(steps):
        answer = loss.ask(moved, nearest)
        loss.finish(answer.fooled)
        slopes = answer.slope
        lengths = slopes.flatten(2).norm(dim=2).clamp(min=torch.finfo(slopes.dtype).tiny)
        reach = answer.values.abs() / lengths
        closest = reach.argmin(dim=1)
        rows = torch.arange(len(pixels), device=pixels.device)
        size = (reach / lengths)[rows, closest].nan_to_num(0, 0, 0)
        change = change + size[:, None, None, None] * slopes[rows, closest]
        moved = (pixels + (1 + overshoot) * change).clamp(0, 1)
    return moved
