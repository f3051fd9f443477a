"""Deconvnet (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901)."""

from torch import Tensor

from camkit import plugin


@plugin.method("deconvnet", paper="arXiv:1311.2901", kind="pixels")
def deconvnet(deconvnet_gradients: Tensor) -> Tensor:
    """Deconvnet: the score projected back to pixels [B, C, H, W], rectified at each ReLU on the way down.

    Pooling is undone by its switches, convolutions by their transposes, which is what their gradients do. The paper
    projects single features; here it is the target's score, as in captum. Negative inputs of a ReLU stop nothing,
    which tells it from guided backpropagation.
    """
    return deconvnet_gradients
