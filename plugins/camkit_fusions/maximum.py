"""The maximum of several layers' maps, as torchcam takes it."""

import torch
from torch import Tensor

from camkit import plugin


@plugin.fusion("max", paper="none")
def maximum(maps: list[Tensor]) -> Tensor:
    """The largest of the maps at each position: what any one layer points at is shown."""
    return torch.stack(maps).amax(dim=0)
