"""Eigen-CAM (Muhammad and Yeasin, IJCNN 2020, arXiv:2008.00299)."""

from torch import Tensor

from camkit import plugin
from camkit.components import principal_component
from camkit.contracts import Note


@plugin.method("eigencam", paper="arXiv:2008.00299", class_specific=False)
def eigencam(activations: Tensor, note: Note, *, centred: bool = False) -> Tensor:
    """Eigen-CAM: every position's channel vector, projected on the first right singular vector of them all.

    The paper does not centre the channels, grad-cam does (`centred`): on tokens, which have much in common, the map is
    nearly flat without it. A singular vector has no sign; here the map's
    value of largest magnitude is positive, where grad-cam leaves it to the numerical library.
    """
    component, gap = principal_component(activations, centred=centred)
    note(gap < 0.05, "The map is one of two that explain the activations nearly equally well: do not rely on it.")
    return component
