"""Pictures and boxes as an Explainer takes them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.preprocessing import Preprocessing
from camkit.samples import Box


def as_images(explainer: Explainer, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the model takes them, [B, C, H, W], on its device and in its type.

    Raises:
        CamkitError: the Explainer has no preprocessing.
    """
    preprocessing = require_preprocessing(explainer)
    return torch.stack([preprocessing(picture) for picture in pictures]).to(explainer.device, explainer.dtype)


def as_region(explainer: Explainer, size: tuple[int, int], boxes: Iterable[Box]) -> Tensor:
    """Where boxes of a picture of `size` (width, height) lie in the model's input, bool [H, W].

    Raises:
        CamkitError: the Explainer has no preprocessing.
    """
    # the boxes travel as a picture through the model's own resizing and cropping, which nothing else knows exactly
    mask = Image.new("RGB", size)
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=(255, 255, 255))
    return torch.from_numpy(np.asarray(require_preprocessing(explainer).view(mask).convert("L")) > 127)


def require_preprocessing(explainer: Explainer) -> Preprocessing:
    """How the Explainer makes pictures the model's input; a CamkitError where it does not know."""
    if explainer.preprocessing is None:
        raise CamkitError(
            "The Explainer does not know how pictures become the model's input; give it preprocessing=..."
        )
    return explainer.preprocessing
