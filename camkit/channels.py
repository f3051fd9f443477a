"""Sums over channels that most methods end with."""

from torch import Tensor


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """The map [B, h, w] of activations [B, K, h, w] under one weight for each channel [B, K]."""
    return (activations * weights[:, :, None, None]).sum(dim=1)


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is zero where the denominator is, so that no added constant outweighs small gradients."""
    zero = denominator == 0
    return numerator.masked_fill(zero, 0) / denominator.masked_fill(zero, 1)
