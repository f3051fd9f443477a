"""The models that conformance kits check on: the caller's own, or small ones."""

from torch import Tensor

from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.testing.models import SmallConvNet, SmallTransformer, random_images


def examples(explainer: Explainer | None, images: Tensor | None) -> list[tuple[Explainer, Tensor]]:
    """A model with its images; without one a convolutional network with softmax and a transformer with sigmoid.

    Raises:
        CamkitError: a model came with fewer than two images.
    """
    if explainer is not None:
        return [(explainer, at_least_two(images))]
    adapter = SmallTransformer.adapter.model_copy(update={"probability": "sigmoid"})
    return [
        (Explainer(SmallConvNet(), adapter=SmallConvNet.adapter), random_images()),
        (Explainer(SmallTransformer(), adapter=adapter), random_images()),
    ]


def at_least_two(images: Tensor | None) -> Tensor:
    """The images that were given for a model, of which there must be two to compare.

    Raises:
        CamkitError: there are fewer.
    """
    if images is None or len(images) < 2:
        raise CamkitError("The conformance kit needs at least two images [B, C, H, W] for the model that it is given.")
    return images
