"""Grad-CAM element-wise (grad-cam, which takes it from Pillai and Pirsiavash, AAAI 2021)."""

from torch import Tensor

from camkit import plugin


@plugin.method("gradcam-elementwise", paper="Pillai and Pirsiavash, AAAI 2021")
def gradcam_elementwise(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM element-wise: gradient times activation at each position and channel, of which only the positive counts.

    HiResCAM with the ReLU before the sum over channels instead of behind it, so the map [B, h, w] is never negative.
    """
    return (gradients * activations).clamp(min=0)
