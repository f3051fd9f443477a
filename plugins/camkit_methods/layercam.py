"""LayerCAM (Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943)."""

from torch import Tensor

from camkit import plugin


@plugin.method("layercam", paper="doi:10.1109/TIP.2021.3089943")
def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: each position weighted by its own positive gradient, so that early layers can be shown."""
    return gradients.clamp(min=0) * activations
