"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv:1610.02391)."""

from torch import Tensor

from camkit import plugin
from camkit.channels import weighted


@plugin.method("gradcam", paper="arXiv:1610.02391")
def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: each channel weighted by its mean gradient (eq. 1 and 2)."""
    return weighted(activations, gradients.mean(dim=(2, 3)))
