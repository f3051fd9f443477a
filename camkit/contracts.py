"""The types of the quantities that are more than a tensor: what a method may do with them, and no more.

A method annotates its parameter with one of these; whoever contributes the quantity returns something that fits.
Shapes: B images, K channels, h x w positions, H x W pixels, n perturbed copies of every image.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor

Make = Callable[[int], Tensor]
Mask = Callable[[Tensor], Tensor]


class Note(Protocol):
    """``note``: says something about some images of the batch, which the user reads beside the map."""

    def __call__(self, affected: Tensor, sentence: str) -> None:
        """`affected` is bool [B]; `sentence` begins with "The map" and says what to make of it."""


class Head(Protocol):
    """``head``: the part of the model behind the target layer, from activations to the target's scores."""

    def __call__(self, activations: Tensor) -> Tensor:
        """Scores [B] of activations [B, K, h, w]; differentiable, twice if need be."""

    def masked(self, mask: Mask, n: int) -> Tensor:
        """Scores [B, n] of the target layer's activations times n masks, without an autograd graph.

        ``mask(indices)`` gives the masks of int64 indices [c], each in 0 … n - 1, as [c, K, h, w], where a dimension in
        which masks do not vary is 1. They run in chunks that fit the memory budget; a mask that changes nothing costs
        nothing. It can be exported, where `map` cannot.
        """

    def map(self, make: Make, n: int) -> Tensor:
        """Scores [B, n] of n perturbed activations, of which ``make(i)`` builds the i-th [B, K, h, w].

        They run in chunks that fit the memory budget, without an autograd graph.
        """


class ModelScores(Protocol):
    """``model_scores``: the target's scores of other images than the given ones."""

    def map(self, make: Make, n: int) -> Tensor:
        """Scores [B, n] of n perturbed images, of which ``make(i)`` builds the i-th [B, C, H, W].

        They run in chunks that fit the memory budget, without an autograd graph.
        """


class Samples(Protocol):
    """``samples``: activations and gradients of other images than the given ones."""

    def __call__(self, make: Make, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of n images ``make(i)`` [B, C, H, W], the activations and gradients [B, K, h, w]."""


class Attention(Protocol):
    """``attention``: what the attention layers of a transformer attended to, and how a relevance becomes a map."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Behind the softmax, [B, heads, N, N] for each layer in order; row q holds what token q attends to."""

    def relevance(self, matrix: Tensor) -> Tensor:
        """The map [B, h, w] in a matrix [B, N, N] that says how much each token (row) relies on each (column).

        Read is the row of the token that the classifier reads, or the mean over the patches where it pools them.
        """
