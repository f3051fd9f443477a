"""What makes a segmentation model see a class in a region (Vinogradova et al., AAAI 2020, arXiv:2002.11434)."""

import torch.nn.functional as F
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError


@plugin.target("region", inputs=("class_index", "mask"))
def region(dense_logits: Tensor, class_index: Tensor, mask: Tensor) -> Tensor:
    """The sum of the class's logits over the pixels of a mask [B, h, w], which may also hold weights.

    A mask of another size than the model's output is resized to it without interpolation.
    """
    if mask.ndim != 3:
        raise CamkitError(
            f"The target's input 'mask' has shape {list(mask.shape)}; [batch, height, width] is expected."
        )
    own = class_logits(dense_logits, class_index)
    weights = mask.to(own.dtype)
    if weights.shape != own.shape:
        weights = F.interpolate(weights[:, None], own.shape[1:], mode="nearest-exact")[:, 0]
    return (own * weights).sum(dim=(1, 2))


def class_logits(dense_logits: Tensor, class_index: Tensor) -> Tensor:
    """The logits of each image's own class at every pixel, [B, h, w]."""
    index = class_index[:, None, None, None].expand(-1, 1, *dense_logits.shape[2:])
    return dense_logits.gather(1, index)[:, 0]
