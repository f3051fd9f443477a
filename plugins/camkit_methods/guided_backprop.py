"""Guided backpropagation (Springenberg et al., ICLR 2015 workshop, arXiv:1412.6806)."""

from torch import Tensor

from camkit import plugin


@plugin.method("guided-backprop", paper="arXiv:1412.6806", kind="pixels")
def guided_backprop(guided_gradients: Tensor) -> Tensor:
    """Guided backpropagation: gradients at the images [B, C, H, W], of which each ReLU lets only the positive pass.

    It shows which pixels excite the features, and hardly depends on the class. grad-cam and captum guide modules of
    class ReLU alone; here ReLUs called as functions are guided too, and relatives such as GELU by the same rule.
    """
    return guided_gradients
