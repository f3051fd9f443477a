"""An edge detector, a baseline that knows nothing of the model."""

import torch.nn.functional as F
from torch import Tensor

from camkit import plugin


@plugin.method("sobel", paper="arXiv:1810.03292", class_specific=False)
def sobel(images: Tensor) -> Tensor:
    """Sobel: the length of the grey image's gradient, [B, H, W]; the edge detector of Adebayo et al.'s sanity checks.

    Grey is the mean over the channels of the images as the model is given them; the border is repeated outwards.
    """
    grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    # each kernel is a difference in one direction of a sum with the weights 1, 2, 1 in the other
    down = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    across = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]
    squares = (down[:, :, 2:] - down[:, :, :-2]).square() + (across[:, 2:] - across[:, :-2]).square()
    return squares.sqrt()
