"""The plain gradient with respect to the images."""

from torch import Tensor

from camkit import plugin
from camkit.quantities import Pass
from camkit_quantities.bias_gradients import full_gradients


@plugin.quantity("image_gradients", traceable=False, layer=False, reruns=True)
def image_gradients(this: Pass) -> Tensor:
    """The gradient of the scores with respect to the images, [B, C, H, W]."""
    return full_gradients(this).images
