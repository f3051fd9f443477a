"""Boxes around what a heatmap shows, and how well they fit the boxes of the object."""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkit.metrics import is_flat, judged

Around = Literal["largest", "all", "each"]
_SIDES = [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP, cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]


def iou_curve(heatmaps: Tensor, boxes: Sequence[Tensor], thresholds: Sequence[float], around: Around) -> Tensor:
    """For each heatmap [B, H, W] and threshold the best IoU of a box of the map with a box of the object, [B, T].

    A map's boxes are those `around` its values above the threshold: the ``largest`` connected component, ``all`` of
    them in one, or ``each`` by itself (neighbours touch at corners, too). No such value: 0. A flat heatmap, and a
    sample without boxes, are not judged: NaN.
    """
    from torchvision.ops import box_iou

    curves = torch.zeros(len(heatmaps), len(thresholds))
    for place, (heat, own) in enumerate(zip(heatmaps.float().cpu().numpy(), boxes, strict=True)):
        for column, threshold in enumerate(thresholds):
            found = _boxes(heat > threshold, around)
            if len(found) and len(own):
                curves[place, column] = box_iou(torch.from_numpy(found), own.cpu()).max()
    known = torch.tensor([len(own) > 0 for own in boxes])
    return judged(curves, known & ~is_flat(heatmaps).cpu())


def _boxes(shown: "NDArray[np.bool_]", around: Around) -> "NDArray[np.float32]":
    """Boxes [k, 4], right and bottom exclusive."""
    _, _, components, _ = cv2.connectedComponentsWithStats(shown.astype(np.uint8), connectivity=8)
    components = components[1:]
    if around == "largest" and len(components):
        components = components[components[:, cv2.CC_STAT_AREA].argmax()][None]
    boxes: NDArray[np.float32] = components[:, _SIDES].astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    if around == "all" and len(boxes):
        boxes = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]
    return boxes
