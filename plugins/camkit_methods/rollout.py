"""Attention rollout (Abnar and Zuidema, ACL 2020, arXiv:2005.00928)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from camkit import plugin
from camkit.contracts import Attention

Ratio = Annotated[float, Field(ge=0, lt=1)]


@plugin.method("rollout", paper="arXiv:2005.00928", class_specific=False)
def rollout(
    attention: Attention, *, heads: Literal["mean", "max", "min"] = "mean", discard_ratio: Ratio = 0.0
) -> Tensor:
    """Attention rollout: the product over layers of (A + I) / 2, A being the mean over heads.

    The package vit-explain also takes the `heads`' maximum or minimum, and sets the share `discard_ratio` of A's
    smallest values to zero, except what the first token attends to itself; rows are then scaled to sum to one.
    """
    fused = []
    for weights in attention.weights:
        joined = weights.mean(dim=1) if heads == "mean" else getattr(weights, f"a{heads}")(dim=1)
        discarded = discard(joined, discard_ratio)
        discarded[:, 0, 0] = joined[:, 0, 0]
        fused.append(discarded)
    return attention.relevance(rolled_out(fused))


def discard(matrix: Tensor, ratio: float) -> Tensor:
    """A copy of matrices [B, N, N] in which the share `ratio` of the values, the smallest, are zero."""
    flat = matrix.flatten(1)
    smallest = flat.topk(int(flat.shape[1] * ratio), dim=1, largest=False).indices
    return flat.scatter(1, smallest, 0).view_as(matrix)


def rolled_out(layers: list[Tensor]) -> Tensor:
    """The product [B, N, N] of A + I over layers, the last one leftmost, each row scaled to sum to one."""
    identity = torch.eye(layers[0].shape[1], dtype=layers[0].dtype, device=layers[0].device)
    result = identity
    for layer in layers:
        mixed = layer + identity
        result = (mixed / mixed.sum(dim=2, keepdim=True)) @ result
    return result
