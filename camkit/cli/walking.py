"""What the views of the layer walk start from: an input for the model, and the target layer."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from camkit.explain import Explainer
    from camkit.models import LoadedModel


def example_images(explainer: "Explainer", loaded: "LoadedModel", image: str | None) -> Tensor:
    """One input [1, C, H, W]: the image, or seeded noise where none is given."""
    if image is not None:
        images, _ = loaded.read([Path(image)])
        return images
    generator = torch.Generator().manual_seed(0)
    channels, (height, width) = len(loaded.preprocessing.mean), loaded.preprocessing.size
    noise = torch.randn(1, channels, height, width, generator=generator)
    return noise.to(explainer.device, explainer.dtype)


def chosen_layer(explainer: "Explainer", images: Tensor) -> str:
    """The path of the layer at which the model would be explained."""
    wanted = explainer.layer if isinstance(explainer.layer, str) else None
    return explainer.resolve(images).adapter.layer(explainer.module, wanted, images).path
