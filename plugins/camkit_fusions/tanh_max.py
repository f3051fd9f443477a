"""LayerCAM's fusion (Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943)."""

import torch
from torch import Tensor

from camkit import plugin


@plugin.fusion("tanh-max", paper="doi:10.1109/TIP.2021.3089943")
def tanh_max(maps: list[Tensor], *, scale: float = 2.0) -> Tensor:
    """The largest of the maps at each position, after a tanh that raises what is weak, as early layers' maps are.

    The tanh is taken of maps that have been resized; torchcam takes it before.
    """
    return torch.tanh(scale * torch.stack(maps)).amax(dim=0)
