"""What makes an image like another, for models whose output is an embedding."""

import torch.nn.functional as F
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError


@plugin.target("similarity", inputs=("embedding",))
def similarity(features: Tensor, embedding: Tensor) -> Tensor:
    """The cosine of the angle between the model's output [B, D] and a given embedding [B, D], from -1 to 1."""
    if embedding.shape != features.shape:
        raise CamkitError(
            f"The target's input 'embedding' has shape {list(embedding.shape)}; the model's output has shape "
            f"{list(features.shape)}, and the embedding must have the same."
        )
    return F.cosine_similarity(features, embedding.to(features.dtype), dim=1)
