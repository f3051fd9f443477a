"""What tells a class from those that are most like it (Finer-CAM: Zhang et al., CVPR 2025, arXiv:2501.11309)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from camkit import plugin
from camkit.channels import divide
from camkit.errors import CamkitError


@plugin.target("difference", inputs=("class_index",))
def difference(
    logits: Tensor,
    class_index: Tensor,
    *,
    alpha: float = 1.0,
    comparisons: Annotated[int, Field(ge=1)] = 3,
    weights: Literal["probability", "mean"] = "probability",
    others: tuple[int, ...] = (),
) -> Tensor:
    """The logit of the class minus `alpha` times the mean logit of the classes that it is compared with.

    Those are the `comparisons` classes whose logits are nearest to the class's own, or all the classes that there are
    if these are fewer; `others` names them instead, and the explained class among them does not count.

    The mean is weighted by softmax probability, as in the authors' code and in grad-cam (with `alpha` 1), and the
    weights are differentiated as well; torchcam takes the plain mean, with an `alpha` of 0.6.
    """
    own = class_index[:, None]
    score = logits.gather(1, own)
    compared = _named(others, logits) if others else _nearest(comparisons, logits, own)
    values = logits.gather(1, compared)
    counted = (compared != own).to(logits.dtype)
    if weights == "probability":
        # in proportion to the softmax over all classes, whose denominator cancels
        counted = counted * (values - values.detach().amax(dim=1, keepdim=True)).exp()
    shares = divide(counted, counted.sum(dim=1, keepdim=True).expand_as(counted))
    return score[:, 0] - alpha * (shares * values).sum(dim=1)


def _nearest(count: int, logits: Tensor, own: Tensor) -> Tensor:
    classes = logits.shape[1]
    if classes < 2:
        raise CamkitError("The target 'difference' compares classes, but the model has only one; choose another.")
    distances = (logits.detach() - logits.detach().gather(1, own)).abs().scatter(1, own, torch.inf)
    return distances.topk(min(count, classes - 1), dim=1, largest=False).indices


def _named(others: tuple[int, ...], logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    wrong = [other for other in others if not 0 <= other < classes or others.count(other) > 1]
    if wrong:
        raise CamkitError(
            f"The option 'others' of the target 'difference' lists class {wrong[0]}; different classes from 0 to "
            f"{classes - 1} are expected."
        )
    return torch.tensor(others, device=logits.device).expand(logits.shape[0], -1)
