"""The fast gradient sign method (Goodfellow et al., ICLR 2015, arXiv:1412.6572)."""

from torch import Tensor

from camkit import plugin
from camkit.attacks import Loss, Threat


@plugin.attack("fgsm", norm=("linf", "l2"), paper="arXiv:1412.6572")
def fgsm(pixels: Tensor, loss: Loss, threat: Threat) -> Tensor:
    """FGSM: one step of size epsilon along the sign of the loss's gradient (section 4); in L2 along the gradient."""
    return pixels + threat.epsilon * threat.steepest(loss.gradient(pixels))
