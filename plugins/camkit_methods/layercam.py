"""LayerCAM (Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943)."""

from torch import Tensor

from camkit import plugin


@plugin.method("layercam", paper="doi:10.1109/TIP.2021.3089943")
def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: each position weighted by its own positive gradient (eq. 5 and 6), so that early layers show."""
    return gradients.clamp(min=0) * activations
