"""LeGrad (Bousselham et al., ICCV 2025, arXiv:2404.03214)."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from camkit import plugin
from camkit.contracts import Attention


@plugin.method("legrad", paper="arXiv:2404.03214")
def legrad(
    attention: Attention, layer_attention_gradients: tuple[Tensor, ...], *, last: PositiveInt | None = None
) -> Tensor:
    """LeGrad: relu of each layer's gradient, the mean over heads, attending tokens and layers.

    A layer's gradient is that of the score which the model's final norm and classifier give the mean of its tokens,
    with respect to its attention, as in the authors' code. Of the layers `last` takes that many, all by default; the
    authors' code takes the last two.
    """
    chosen = layer_attention_gradients[-last:] if last else layer_attention_gradients
    attended = torch.stack([gradient.clamp(min=0).mean(dim=(1, 2)) for gradient in chosen]).mean(dim=0)
    return attention.relevance(attended[:, None, :].expand(-1, attended.shape[1], -1))
