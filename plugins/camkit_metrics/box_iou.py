"""The IoU of a box around what the heatmap shows (Zhou et al. 2016, arXiv:1512.04150)."""

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from camkit import plugin
from camkit_metrics._boxes import Around, iou_curve


@plugin.metric("box_iou", paper="arXiv:1512.04150", higher_is_better=True, unit="share")
def box_iou(
    heatmaps: Tensor,
    boxes: list[Tensor],
    *,
    threshold: Annotated[float, Ge(0), Lt(1)] = 0.2,
    around: Around = "largest",
) -> Tensor:
    """Box IoU: how well a box around what the map shows fits the object's box (section 3.2).

    |P and G| / |P or G| of the box P around the heatmap's values above `threshold` times its maximum, and the box G of
    the class; of several G the best. Definition ``box-iou/1``.

    `around` says what P holds: the ``largest`` connected component (as in the paper, with 0.2), ``all`` of them in one
    box, or ``each`` in a box of its own, of which the best counts. NaN: a flat heatmap, a sample without boxes.
    """
    return iou_curve(heatmaps, boxes, [threshold], around)[:, 0]
