"""What the quantities that differentiate with respect to the images share."""

import torch
from torch import Tensor

from camkit.errors import CamkitError
from camkit.precision import single
from camkit.quantities import Pass


def gradient_at_images(again: Pass) -> Tensor:
    """The gradient of the summed scores, [B, C, H, W], in a pass that was recorded from the images on.

    Raises:
        CamkitError: the scores do not depend on the images by any differentiable way.
    """
    scores, images = again.scored.scores, again.scored.forward.images
    found = None
    if scores.requires_grad:
        (found,) = torch.autograd.grad(scores, images, torch.ones_like(scores), allow_unused=True)
    if found is None:
        raise CamkitError(
            "The scores have no gradient with respect to the images: the model cuts it off on the way (detach, "
            "rounding, integer arithmetic); explain it with a method that needs no gradients at the images."
        )
    return single(found)
