"""From the signed low-resolution map to the heatmap: ReLU, resize to the input, one min-max per image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def heatmaps(maps: Tensor, size: tuple[int, int], *, relu: bool = True) -> Tensor:
    """Heatmaps [B, H, W] at input size from signed maps [B, h, w].

    With ReLU the values lie in [0, 1]: one min-max per image after the resize. Without, the map is scaled
    symmetrically to [-1, 1], zero staying zero. A flat map gives zeros.
    """
    kept = maps.clamp(min=0) if relu else maps
    resized = F.interpolate(kept.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
    scaled = scale(resized, relu=relu)
    if not relu:
        return scaled
    # resizing one value gives that value up to rounding, which min-max would make the heatmap
    even = kept.amax(dim=(1, 2), keepdim=True) <= kept.amin(dim=(1, 2), keepdim=True)
    return torch.where(even, torch.zeros_like(scaled), scaled)


def scale(maps: Tensor, *, relu: bool) -> Tensor:
    """One min-max per image to [0, 1], or a symmetric scaling to [-1, 1] where maps are signed."""
    if relu:
        lowest = maps.amin(dim=(1, 2), keepdim=True)
        span = maps.amax(dim=(1, 2), keepdim=True) - lowest
        return (maps - lowest) / torch.where(span > 0, span, torch.ones_like(span))
    span = maps.abs().amax(dim=(1, 2), keepdim=True)
    return maps / torch.where(span > 0, span, torch.ones_like(span))
