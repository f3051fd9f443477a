"""FEM, Feature Explanation Method (Fuad et al., IPTA 2020, doi:10.1109/IPTA50016.2020.9286629)."""

from typing import Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted


@plugin.method("fem", paper="doi:10.1109/IPTA50016.2020.9286629", class_specific=False)
def fem(activations: Tensor, *, k: NonNegativeFloat = 2.0, variant: Literal["paper", "grad-cam"] = "paper") -> Tensor:
    """FEM: in each channel the positions above mean + k standard deviations, weighted by the channel's mean.

    The ``grad-cam`` variant is that package's: the activations themselves, weighted by the share of positions that lie
    above. On a grid of 5 positions or fewer none can lie 2 standard deviations above the mean, and the map is zero.
    """
    mean = activations.mean(dim=(2, 3))
    deviation = activations.std(dim=(2, 3), correction=0)
    strong = (activations > (mean + k * deviation)[:, :, None, None]).to(activations.dtype)
    return weighted(strong, mean) if variant == "paper" else weighted(activations, strong.mean(dim=(2, 3)))
