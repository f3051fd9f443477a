"""Ablation-CAM (Desai and Ramaswamy, WACV 2020, doi:10.1109/WACV45572.2020.9093360)."""

from typing import Literal

import torch
from torch import Tensor

from camkit import plugin
from camkit.channels import divide, weighted
from camkit.contracts import Head


@plugin.method("ablationcam", paper="doi:10.1109/WACV45572.2020.9093360")
def ablationcam(activations: Tensor, head: Head, *, weights: Literal["relative", "slope"] = "relative") -> Tensor:
    """Ablation-CAM: each channel weighted by how much the score y drops when the channel is set to zero.

    ``relative`` is the drop as a share of the score, (y - y_k) / |y|, which the paper computes with; ``slope`` is the
    drop divided by the length of the channel, (y - y_k) / ||A_k||, from which the paper starts. The paper divides by y,
    which turns the map around where the score is negative, and so does grad-cam; |y| changes nothing else. A score of
    exactly 0 has no shares, so the weights are the drops themselves: the same map up to its scale. Where features can
    be negative grad-cam fills a channel with about -1e7 instead of zero.
    """
    channels = torch.arange(activations.shape[1], device=activations.device)

    def mask(indices: Tensor) -> Tensor:
        return (channels != indices[:, None])[:, :, None, None]

    # the last one is whole: its score comes the same way as the others, with the same rounding
    scores = head.masked(mask, len(channels) + 1)
    whole = scores[:, -1:]
    drops = whole - scores[:, :-1]
    if weights == "slope":
        return weighted(activations, divide(drops, torch.linalg.vector_norm(activations, dim=(2, 3))))
    return weighted(activations, drops / torch.where(whole == 0, 1, whole.abs()))
