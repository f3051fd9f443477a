"""Arithmetic over channels that many methods share."""

from torch import Tensor


def weighted(activations: Tensor, weights: Tensor) -> Tensor:
    """Activations [B, K, h, w], each channel times its weight [B, K]; the engine sums the channels to the map."""
    return activations * weights[:, :, None, None]


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is zero where the denominator is, so that no added constant outweighs small gradients."""
    zero = denominator == 0
    return numerator.masked_fill(zero, 0) / denominator.masked_fill(zero, 1)
