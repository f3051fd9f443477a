"""Recipro-CAM (Byun and Lee, 2022, arXiv:2209.14074) and ViT-Recipro-CAM (Byun and Lee, 2023, arXiv:2310.02588)."""

from torch import Tensor

from camkit import plugin
from camkit.contracts import Head

SINGLE = ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
GAUSSIAN = ((1 / 16, 1 / 8, 1 / 16), (1 / 8, 1 / 4, 1 / 8), (1 / 16, 1 / 8, 1 / 16))


@plugin.method("reciprocam", paper="arXiv:2209.14074")
def reciprocam(activations: Tensor, head: Head, *, gaussian: bool = False) -> Tensor:
    """Recipro-CAM: at each position the score when nothing but that position's activations is left, [B, h, w].

    `gaussian` leaves a 3 x 3 neighbourhood instead, weighted by the paper's Gaussian kernel (1/4 in the middle). The
    authors' code scores with the class's probability and stretches the map to [0, 1]; here it holds the scores
    themselves, so a map that is negative everywhere asks for a probability as the target.
    """
    return _left_alone(activations, head, gaussian=gaussian)


@plugin.method("vit-reciprocam", paper="arXiv:2310.02588")
def vit_reciprocam(activations: Tensor, head: Head, *, gaussian: bool = True) -> Tensor:
    """ViT-Recipro-CAM: for each patch the score when nothing but that patch's token is left, [B, h, w].

    The class token and other prefix tokens stay, and so does all that bypasses the layer: behind a block's first norm
    that is the residual stream. By default the 3 x 3 neighbours stay too, weighted by a Gaussian kernel.
    """
    return _left_alone(activations, head, gaussian=gaussian)


def _left_alone(activations: Tensor, head: Head, *, gaussian: bool) -> Tensor:
    height, width = activations.shape[2:]
    kernel = activations.new_tensor(GAUSSIAN if gaussian else SINGLE)

    def make(i: int) -> Tensor:
        row, column = divmod(i, width)
        # one position wider on each side, so that the kernel fits at the border
        mask = activations.new_zeros(height + 2, width + 2)
        mask[row : row + 3, column : column + 3] = kernel
        return activations * mask[1:-1, 1:-1]

    return head.map(make, height * width).reshape(-1, height, width)
