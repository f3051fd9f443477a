"""The basic iterative method (Kurakin et al., ICLR 2017 workshop, arXiv:1607.02533)."""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat, ascend


@plugin.attack("bim", norm=("linf", "l2"), paper="arXiv:1607.02533")
def bim(
    pixels: Tensor, loss: Loss, threat: Threat, *, steps: Annotated[int, Ge(1)] = 10, step_size: float | None = None
) -> Tensor:
    """BIM: FGSM in small steps, each clipped to the ball (section 2.2).

    `step_size` is in the unit of the threat model; by default the steps together reach its border.
    """
    size = threat.step_size(step_size, steps)
    return ascend(loss, pixels, steps=steps, step_size=size)
