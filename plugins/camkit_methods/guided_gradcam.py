"""Guided Grad-CAM (Selvaraju et al., ICCV 2017, arXiv:1610.02391)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import Note


@plugin.method("guided-gradcam", paper="arXiv:1610.02391", kind="pixels")
def guided_gradcam(
    activations: Tensor,
    gradients: Tensor,
    guided_gradients: Tensor,
    note: Note,
    *,
    upsampling: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Guided Grad-CAM: guided gradients [B, C, H, W] times the positive part of the Grad-CAM map.

    The map is brought to the size of the image bilinearly, as in the paper; captum takes the nearest position. It is
    not scaled to [0, 1] before, which would only change the unit, except that grad-cam also subtracts its minimum.
    """
    maps = weighted(activations, gradients.mean(dim=(2, 3))).sum(dim=1, keepdim=True).clamp(min=0)
    note(
        (maps == 0).flatten(1).all(dim=1),
        "The map is zero everywhere: Grad-CAM finds nothing that speaks for the target, so there is nothing to guide.",
    )
    return guided_gradients * F.interpolate(maps, size=guided_gradients.shape[2:], mode=upsampling)
