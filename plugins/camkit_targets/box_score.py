"""What makes a detector see an object in a box."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError


@plugin.target("box-score", inputs=("class_index", "box"))
def box_score(
    output: Any,
    class_index: Tensor,
    box: Tensor,
    *,
    minimum_overlap: Annotated[float, Field(ge=0, le=1)] = 0.5,
    add_overlap: bool = False,
) -> Tensor:
    """The score of the detection of the class that overlaps the box [B, 4] best; 0 where none does.

    Boxes are x1, y1, x2, y2 in pixels of the image; the output is torchvision's, for each image a dictionary of
    ``boxes``, ``labels`` and ``scores``. Overlap is intersection over union, and must exceed `minimum_overlap`.

    grad-cam adds the overlap to the score, which `add_overlap` does too; it gives 0 where a detection of another class
    overlaps the box better.
    """
    if box.ndim != 2 or box.shape[1] != 4:
        raise CamkitError(f"The target's input 'box' has shape {list(box.shape)}; [batch, 4] is expected.")
    if not isinstance(output, list | tuple) or not all(_is_detection(one) for one in output):
        raise CamkitError(
            "The target 'box-score' needs a detector, whose output is a dictionary of 'boxes', 'labels' and 'scores' "
            "for each image, which this model does not give."
        )
    scores = []
    # each image has its own number of detections
    for detections, wanted, place in zip(output, class_index, box, strict=True):
        overlaps = _overlaps(detections["boxes"], place.to(detections["boxes"].dtype))
        candidates = overlaps.detach().masked_fill(detections["labels"] != wanted, -1)
        # a sum over none stays in the autograd graph, where a new zero would not be
        best = candidates.topk(min(1, len(candidates))).indices
        best = best[candidates[best] > minimum_overlap]
        value = detections["scores"] + overlaps if add_overlap else detections["scores"]
        scores.append(value[best].sum())
    return torch.stack(scores)


def _overlaps(boxes: Tensor, place: Tensor) -> Tensor:
    """Intersection over union of boxes [n, 4] with one box [4]."""
    sides = torch.minimum(boxes[:, 2:], place[2:]) - torch.maximum(boxes[:, :2], place[:2])
    shared = sides.clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (place[2:] - place[:2]).prod()
    return shared / (areas - shared)


def _is_detection(one: object) -> bool:
    return isinstance(one, dict) and {"boxes", "labels", "scores"} <= set(one)
