"""What makes an image's embedding what it is, for models without classes."""

import torch
from torch import Tensor

from camkit import plugin


@plugin.target("embedding")
def embedding(features: Tensor) -> Tensor:
    """The length of the model's output [B, D]: its projection on its own direction, which is held fixed.

    Positions count as far as they push the embedding where it points.
    """
    length: Tensor = torch.linalg.vector_norm(features, dim=1)
    return length
