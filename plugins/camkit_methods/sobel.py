"""An edge detector, a baseline that knows nothing of the model."""

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit import plugin


@plugin.method("sobel", paper="arXiv:1810.03292", class_specific=False)
def sobel(images: Tensor) -> Tensor:
    """Sobel: the length of the grey image's gradient, [B, H, W]; the edge detector of Adebayo et al.'s sanity checks.

    Grey is the mean over the channels of the images as the model is given them; the border is repeated outwards.
    """
    across = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=images.dtype, device=images.device)
    kernels = torch.stack([across, across.T])[:, None]
    grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    length: Tensor = torch.linalg.vector_norm(F.conv2d(grey, kernels), dim=1)
    return length
