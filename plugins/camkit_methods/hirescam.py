"""HiResCAM (Draelos and Carin, 2020, arXiv:2011.08891)."""

from torch import Tensor

from camkit import plugin
from camkit.contracts import Note


@plugin.method("hirescam", paper="arXiv:2011.08891")
def hirescam(activations: Tensor, gradients: Tensor, note: Note) -> Tensor:
    """HiResCAM: gradient times activation at each position, summed over channels.

    Where the classifier is linear in the activations the map's sum is the score itself, up to the bias. Right in front
    of a LayerNorm with nothing beside it the map is zero but for rounding, since scaling a token changes nothing there.
    """
    products = gradients * activations
    left, summed = products.sum(dim=1).abs().amax(dim=(1, 2)), products.abs().sum(dim=1).amax(dim=(1, 2))
    note(
        left < 1e-5 * summed,
        "The map is rounding noise: the channels cancel at every position, as in front of a LayerNorm that alone reads "
        "this layer; explain an earlier layer, or use another method.",
    )
    return products
