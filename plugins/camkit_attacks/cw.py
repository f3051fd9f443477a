"""The attack of Carlini and Wagner in L2 (IEEE S&P 2017, arXiv:1608.04644)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from camkit import plugin
from camkit.attacks import Goal, Loss


@plugin.attack("cw", norm="smallest", paper="arXiv:1608.04644")
def carlini_wagner(
    pixels: Tensor,
    loss: Loss,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    searches: Annotated[int, Ge(1)] = 6,
    weight: Annotated[float, Gt(0)] = 1.0,
    learning_rate: Annotated[float, Gt(0)] = 0.01,
    confidence: Annotated[float, Ge(0)] = 0.0,
) -> Tensor:
    """C&W in L2: the squared distance plus c times the margin that is missing, minimised by Adam (section VI-A).

    An image is (tanh(w) + 1) / 2, so that it stays in [0, 1], and the margin is f6 of section IV-A. `weight` is the
    first c; `searches` values are tried for each image, larger ones until the model is fooled, then halfway between.
    `confidence` is the margin that is asked for. The paper takes 9 searches of 10,000 steps.
    """

    def missing(goal: Goal, logits: Tensor) -> Tensor:
        return (-goal.margin(logits)).clamp(min=-confidence)

    # the border of [0, 1] is at infinity
    start = torch.atanh((2 * pixels - 1) * (1 - 1e-6))
    count, device = len(pixels), pixels.device
    c, low = torch.full((count,), weight, device=device), torch.zeros(count, device=device)
    high = torch.full((count,), torch.inf, device=device)
    for _ in range(searches):
        w = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([w], lr=learning_rate)
        succeeded = torch.zeros(count, dtype=torch.bool, device=device)
        for _ in loss.steps(steps):
            moved = (w.detach().tanh() + 1) / 2
            answer = loss.ask(moved, missing)
            succeeded |= answer.fooled
            # the chain rule by hand: the model is camkit's to differentiate
            slope = 2 * (moved - pixels) + c[:, None, None, None] * answer.slope
            w.grad = slope * 2 * moved * (1 - moved)
            optimiser.step()
        high = torch.where(succeeded, torch.minimum(high, c), high)
        low = torch.where(succeeded, low, torch.maximum(low, c))
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
    return (w.detach().tanh() + 1) / 2
