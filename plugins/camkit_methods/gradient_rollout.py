"""Gradient attention rollout (Gildenblat, github.com/jacobgil/vit-explain, 2020)."""

from torch import Tensor

from camkit import plugin
from camkit.contracts import Attention
from camkit_methods.rollout import Ratio, discard, rolled_out


@plugin.method("gradient-rollout", paper="github.com/jacobgil/vit-explain")
def gradient_rollout(
    attention: Attention, attention_gradients: tuple[Tensor, ...], *, discard_ratio: Ratio = 0.0
) -> Tensor:
    """Attention rollout of relu(mean over heads of gradient times attention), with rows scaled to sum to one.

    The share `discard_ratio` of each layer's smallest values is set to zero. vit-explain divides each column by the sum
    of the row of the same number, where it means each row by its own; its default `discard_ratio` is 0.9.
    """
    layers = zip(attention.weights, attention_gradients, strict=True)
    fused = [(weights * gradient).mean(dim=1).clamp(min=0) for weights, gradient in layers]
    return attention.relevance(rolled_out([discard(each, discard_ratio) for each in fused]))
