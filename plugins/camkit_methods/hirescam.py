"""HiResCAM (Draelos and Carin, 2020, arXiv:2011.08891)."""

from torch import Tensor

from camkit import plugin


@plugin.method("hirescam", paper="arXiv:2011.08891")
def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: gradient times activation at each position, summed over channels.

    Where the classifier is linear in the activations the map's sum is the score itself, up to the bias. Right in front
    of a LayerNorm with nothing beside it the map is zero but for rounding, since scaling a token changes nothing there.
    """
    return gradients * activations
