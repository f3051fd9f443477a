"""KPCA-CAM (Karmani et al., MMSP 2024, arXiv:2410.00267)."""

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from camkit import plugin
from camkit.channels import divide
from camkit.components import leading_eigenvector, positive_peak
from camkit.contracts import Note


@plugin.method("kpcacam", paper="arXiv:2410.00267", class_specific=False)
def kpcacam(
    activations: Tensor,
    note: Note,
    *,
    kernel: Literal["sigmoid", "rbf", "poly", "linear"] = "sigmoid",
    gamma: PositiveFloat | None = None,
) -> Tensor:
    """KPCA-CAM: the first component of a kernel PCA over the positions' channel vectors x.

    Kernels with their constants as in scikit-learn, gamma 1/K by default: sigmoid tanh(gamma x.y + 1), rbf
    exp(-gamma |x - y|^2), poly (gamma x.y + 1)^3, linear x.y. As in grad-cam, channels are centred before the kernel.
    The map's value of largest magnitude is positive; there its sign is left to the numerical library. It needs memory
    for (h * w)^2 values per image, so a late layer is the place for it.
    """
    positions = activations.flatten(2).transpose(1, 2)
    positions = positions - positions.mean(dim=1, keepdim=True)
    products = positions @ positions.transpose(1, 2)
    similarity = _kernel(products, kernel, 1 / activations.shape[1] if gamma is None else gamma)
    # equal positions then give zeros, not the rounding of what centring takes away
    similarity = similarity - similarity[:, :1, :1]
    by_row, by_column = similarity.mean(dim=2, keepdim=True), similarity.mean(dim=1, keepdim=True)
    centred = similarity - by_row - by_column + by_row.mean(dim=1, keepdim=True)
    vector, first, second = leading_eigenvector(centred, definite=False)
    note(
        1 - divide(second, first).clamp(0, 1).sqrt() < 0.05,
        "The map is one of two that explain the activations nearly equally well: do not rely on it.",
    )
    component = vector[:, :, 0] * first.clamp(min=0).sqrt()[:, None]
    return positive_peak(component).view_as(activations[:, 0])


def _kernel(products: Tensor, kernel: str, gamma: float) -> Tensor:
    if kernel == "sigmoid":
        return (gamma * products + 1).tanh()
    if kernel == "poly":
        return (gamma * products + 1) ** 3
    if kernel == "rbf":
        squares = products.diagonal(dim1=1, dim2=2)
        return (-gamma * (squares[:, :, None] + squares[:, None, :] - 2 * products).clamp(min=0)).exp()
    return products
