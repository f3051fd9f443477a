"""Seg-Eigen-CAM (Chung and Ying, Applied Sciences 2025, doi:10.3390/app15137562)."""

from torch import Tensor

from camkit import plugin
from camkit.components import principal_component
from camkit.contracts import Note


@plugin.method("segeigencam", paper="doi:10.3390/app15137562")
def segeigencam(activations: Tensor, gradients: Tensor, note: Note) -> Tensor:
    """Seg-Eigen-CAM: the first principal component of |gradient| times activation, channels centred.

    The sign is the paper's own rule: the map's value of largest magnitude is positive.
    """
    component, gap = principal_component(gradients.abs() * activations, centred=True)
    note(gap < 0.05, "The map is one of two that explain the products nearly equally well: do not rely on it.")
    return component
