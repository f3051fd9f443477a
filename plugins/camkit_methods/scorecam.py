"""Score-CAM (Wang et al., CVPR Workshops 2020, arXiv:1910.01279)."""

from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import ModelScores
from camkit_methods.perturbed import Weighting, channel_weights, increases


@plugin.method("scorecam", paper="arXiv:1910.01279")
def scorecam(
    activations: Tensor, images: Tensor, model_scores: ModelScores, *, weights: Weighting = "softmax"
) -> Tensor:
    """Score-CAM: each channel weighted by the score of the image masked with that channel.

    A mask is the channel resized to the image and then stretched to [0, 1]; a channel that is constant is left out. Its
    increase of confidence is the score of the masked image minus that of a black one (zeros). The weights are the
    ``softmax`` of the increases over all channels, as in the paper's algorithm, grad-cam and torchcam; or the
    ``increase`` itself, as the paper defines it. The authors' code weights with the class's probability: take
    ``increase`` with a probability as the target. grad-cam resizes with aligned corners, torchcam stretches before it
    resizes, and in both a constant channel takes part in the softmax.
    """
    increase = increases(activations, images, model_scores, lambda mask, channel, version: images * mask)
    return weighted(activations, channel_weights(increase, activations, weights))
