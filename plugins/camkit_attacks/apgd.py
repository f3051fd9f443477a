"""Auto-PGD, the core of AutoAttack (Croce and Hein, ICML 2020, arXiv:2003.01690)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.attacks import Goal, Loss, Threat, chosen
from camkit.errors import CamkitError


@plugin.attack("apgd", norm=("linf", "l2"), paper="arXiv:2003.01690")
def apgd(
    pixels: Tensor,
    loss: Loss,
    threat: Threat,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    objective: Literal["ce", "dlr"] = "ce",
    rho: float = 0.75,
    seed: int = 0,
) -> Tensor:
    """APGD: PGD with momentum whose step size is halved where the loss stagnates (algorithm 1).

    `objective` is the cross-entropy (ce) or the difference of logits ratio (dlr, eq. 6). At each checkpoint the step is
    halved, and the best point returned to, if fewer than the share `rho` of the steps since the last one raised the
    loss, or neither step size nor best loss has changed since then.
    """
    of = Goal.loss if objective == "ce" else logits_ratio
    moved = threat.random(torch.Generator().manual_seed(seed))
    answer = loss.ask(moved, of)
    size = torch.full((len(pixels),), 2 * threat.epsilon, device=pixels.device)
    best, best_value, best_slope = moved, answer.values, answer.slope
    previous, value, slope = moved, answer.values, answer.slope
    last_best, halved = best_value, torch.ones_like(size, dtype=torch.bool)
    raised, since, next_check = torch.zeros_like(size), 0, checkpoints(steps)
    for step in loss.steps(steps):
        ahead = threat.project(moved + size[:, None, None, None] * threat.steepest(slope))
        momentum = 0.75 if step else 1.0
        ahead = threat.project(moved + momentum * (ahead - moved) + (1 - momentum) * (moved - previous))
        previous, moved = moved, ahead
        answer = loss.ask(moved, of)
        raised, value, slope = raised + (answer.values > value), answer.values, answer.slope
        better = value > best_value
        best, best_slope = chosen(better, moved, best), chosen(better, slope, best_slope)
        best_value = torch.maximum(value, best_value)
        since += 1
        if step + 1 in next_check:
            stagnant = (raised < rho * since) | (~halved & (best_value <= last_best))
            size = torch.where(stagnant, size / 2, size)
            moved, slope = chosen(stagnant, best, moved), chosen(stagnant, best_slope, slope)
            last_best, halved = best_value, stagnant
            raised, since = torch.zeros_like(size), 0
    return best


def logits_ratio(goal: Goal, logits: Tensor) -> Tensor:
    """The margin divided by how far the highest logit is above the third (eq. 6).

    With a target the divisor is, as in eq. 7, the highest logit less the mean of the third and fourth.
    """
    needed = 3 if goal.target is None else 4
    if logits.shape[1] < needed:
        raise CamkitError(f"The objective dlr needs {needed} classes, the model has {logits.shape[1]}; choose ce.")
    ranked = logits.topk(needed, dim=1).values
    spread = ranked[:, 0] - ranked[:, 2:].mean(dim=1)
    return goal.margin(logits) / (spread + 1e-12)


def checkpoints(steps: int) -> set[int]:
    """After how many steps it is looked whether the loss stagnates (section 3.1, eq. 3)."""
    interval, found, place = max(int(0.22 * steps), 1), set(), 0
    while place + interval <= steps:
        place += interval
        found.add(place)
        interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found
