"""Grad-CAM++ (Chattopadhay et al., WACV 2018, arXiv:1710.11063)."""

from torch import Tensor

from camkit import plugin
from camkit.channels import divide, weighted


@plugin.method("gradcam++", paper="arXiv:1710.11063")
def gradcam_plusplus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: positive gradients weighted by how much each position explains alone (eq. 10 and 19).

    With Y = exp(S), as the paper has it, the weight of a position is g^2 / (2 g^2 + g^3 sum(A)), where g is the
    gradient of the score S and sum(A) the channel's sum over positions. Dividing by g^2 gives 1 / (2 + g sum(A)):
    no constant has to be added to a denominator that is smaller than any constant. The common positive factor exp(S)
    of the whole map is left out.
    """
    sums = activations.sum(dim=(2, 3), keepdim=True)
    positive = gradients.clamp(min=0)
    return weighted(activations, divide(positive, 2 + gradients * sums).sum(dim=(2, 3)))
