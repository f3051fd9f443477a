"""IS-CAM, Integrated Score-CAM (Naidu et al., 2020, arXiv:2010.03023)."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import ModelScores
from camkit_methods.perturbed import Weighting, channel_weights, increases


@plugin.method("iscam", paper="arXiv:2010.03023")
def iscam(
    activations: Tensor,
    images: Tensor,
    model_scores: ModelScores,
    *,
    path: Literal["sum", "line"] = "sum",
    steps: Annotated[int, Field(ge=2)] = 10,
    weights: Weighting = "softmax",
) -> Tensor:
    """IS-CAM: Score-CAM with each channel's increase of confidence averaged over a path from black to the masked image.

    The path of N steps is the paper's ``sum``, to which step i = 0 .. N - 1 adds i / N of the masked image: from the
    fifth of ten steps on it is brighter than the image itself. torchcam adds (i + 1) / N. A ``line`` takes i / N of it,
    i = 1 .. N, as Integrated Gradients do.
    """
    # the sum's first step is the black image itself, whose increase is zero
    factors = [i * (i + 1) / (2 * steps) if path == "sum" else i / steps for i in range(1, steps + (path == "line"))]
    increase = increases(
        activations,
        images,
        model_scores,
        lambda mask, channel, version: factors[version] * mask * images,
        versions=len(factors),
    )
    return weighted(activations, channel_weights(increase * len(factors) / steps, activations, weights))
