"""Eigen-Grad-CAM, which has no paper: it comes from the grad-cam package, after Eigen-CAM (arXiv:2008.00299)."""

from torch import Tensor

from camkit import plugin
from camkit.components import principal_component
from camkit.contracts import Note


@plugin.method("eigengradcam", paper="none; pytorch-grad-cam, after arXiv:2008.00299")
def eigengradcam(activations: Tensor, gradients: Tensor, note: Note) -> Tensor:
    """Eigen-Grad-CAM: the first principal component of gradient times activation, channels centred.

    The map's value of largest magnitude is positive, where grad-cam leaves the sign to the numerical library. Taken
    from a product, that sign says nothing about being for or against the class.
    """
    component, gap = principal_component(gradients * activations, centred=True)
    note(gap < 0.05, "The map is one of two that explain the products nearly equally well: do not rely on it.")
    return component
