"""The fast gradient sign method (Goodfellow et al., ICLR 2015, arXiv:1412.6572)."""

from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss


@plugin.attack("fgsm", norm="linf", paper="arXiv:1412.6572")
def fgsm(pixels: Tensor, loss: Loss, epsilon: float) -> Tensor:
    """FGSM: one step of size epsilon along the sign of the loss's gradient (section 4)."""
    return pixels + epsilon * loss.gradient(pixels).sign()
