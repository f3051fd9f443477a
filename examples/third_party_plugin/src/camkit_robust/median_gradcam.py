"""Grad-CAM with the median in place of the mean; not from a paper."""

from torch import Tensor

from camkit import plugin
from camkit.channels import weighted


@plugin.method("median-gradcam", paper="none")
def median_gradcam(activations: Tensor, median_gradients: Tensor, *, positive: bool = False) -> Tensor:
    """Grad-CAM with the median in place of the mean: most positions decide a channel's weight, not a few large ones.

    Behind the target layer of a model that ends in global average pooling all gradients of a channel are equal, and the
    map is Grad-CAM's; at earlier layers they are not. `positive` leaves out the channels that speak against the target.
    """
    weights = median_gradients.clamp(min=0) if positive else median_gradients
    return weighted(activations, weights)
