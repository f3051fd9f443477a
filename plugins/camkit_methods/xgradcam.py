"""XGrad-CAM (Fu et al., BMVC 2020, arXiv:2008.02312)."""

from torch import Tensor

from camkit import plugin
from camkit.channels import divide, weighted


@plugin.method("xgradcam", paper="arXiv:2008.02312")
def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM: each channel weighted by its gradient's mean under the normalised activations.

    The normaliser is the channel's sum over positions. Where features are signed (after LayerNorm, GELU or SiLU) it can
    come near zero, and the channel's weight is then large; a channel whose sum is zero has no weight.
    """
    sums = activations.sum(dim=(2, 3))
    return weighted(activations, divide((gradients * activations).sum(dim=(2, 3)), sums))
