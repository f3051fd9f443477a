"""How alike two maps are."""

import torch
from torch import Tensor


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of maps [B, h, w] with others, in [-1, 1], [B]; NaN where one of the two is flat."""
    first, second = (maps.flatten(1).double() for maps in (one, other))
    first, second = (values - values.mean(dim=1, keepdim=True) for values in (first, second))
    size = first.norm(dim=1) * second.norm(dim=1)
    correlation: Tensor = (first * second).sum(dim=1) / size.where(size > 0, torch.nan)
    clipped: Tensor = correlation.clamp(-1, 1).to(one.dtype)
    return clipped


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of maps [B, h, w] with others, in [-1, 1], [B]; equal values share their rank."""
    from scipy.stats import rankdata

    first, second = (torch.from_numpy(rankdata(maps.flatten(1).cpu().numpy(), axis=1)) for maps in (one, other))
    return pearson(first, second).to(one)
