"""Generic attention explainability (Chefer, Gur and Wolf, ICCV 2021, arXiv:2103.15679), for self-attention."""

import torch
from torch import Tensor

from camkit import plugin
from camkit.contracts import Attention


@plugin.method("chefer", paper="arXiv:2103.15679")
def chefer(attention: Attention, attention_gradients: tuple[Tensor, ...]) -> Tensor:
    """R = R + mean over heads of relu(gradient times attention) @ R, from R = I through all layers.

    Computed is R - I: I adds nothing to what a class token relies on, and to what the patches' mean relies on the same
    at every place, in which small gradients would be lost to rounding.
    """
    relevance = torch.zeros_like(attention.weights[0][:, 0])
    for weights, gradient in zip(attention.weights, attention_gradients, strict=True):
        update = (gradient * weights).clamp(min=0).mean(dim=1)
        relevance = relevance + update + update @ relevance
    return attention.relevance(relevance)
