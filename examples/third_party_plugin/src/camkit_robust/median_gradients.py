"""The quantity ``median_gradients``: any method, of this distribution or another, can ask for it by that name."""

from torch import Tensor

from camkit import plugin
from camkit.quantities import Pass, gradients


@plugin.quantity("median_gradients", traceable=True, graph=True)
def median_gradients(this: Pass) -> Tensor:
    """The median of each channel's gradient over the positions of the target layer, [B, K].

    Of an even number of positions it is the lower of the two in the middle, as PyTorch has it.
    """
    return gradients(this).flatten(2).median(dim=2).values
