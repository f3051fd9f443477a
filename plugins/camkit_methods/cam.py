"""CAM (Zhou et al., CVPR 2016, arXiv:1512.04150)."""

from torch import Tensor

from camkit import plugin
from camkit.channels import weighted


@plugin.method("cam", paper="arXiv:1512.04150")
def cam(activations: Tensor, classifier_weights: Tensor) -> Tensor:
    """CAM: each channel weighted by the classifier's weight for the class (eq. 2).

    Defined where the logits are one linear layer on the global average of the activations; there Grad-CAM is the same
    map divided by h * w.
    """
    return weighted(activations, classifier_weights)
