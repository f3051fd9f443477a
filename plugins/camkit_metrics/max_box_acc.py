"""MaxBoxAcc (Choe et al., CVPR 2020, arXiv:2001.07437)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from camkit import plugin
from camkit_metrics._boxes import iou_curve
from camkit_metrics.best_iou import highest_mean


@plugin.metric("max_box_acc", paper="arXiv:2001.07437", higher_is_better=True, unit="share", reduce=highest_mean)
def max_box_acc(
    heatmaps: Tensor,
    boxes: list[Tensor],
    *,
    thresholds: Annotated[int, Ge(1)] = 100,
    enough: Annotated[float, Gt(0), Le(1)] = 0.5,
) -> Tensor:
    """MaxBoxAcc: the share of samples whose box fits well enough, at the threshold that is best over the data set.

    max over t of the mean of [IoU(t) >= `enough`], with the box around the largest component of the values
    above t, for t = 0, 1/n, 2/n … with n = `thresholds`. Definition ``max-box-acc/1``.

    A sample's values are 1 or 0 for each threshold, [B, n]. The size of a component is its number of pixels, where the
    authors' code takes the area inside its outline. NaN: a flat heatmap, a sample without boxes.
    """
    curves = iou_curve(heatmaps, boxes, [step / thresholds for step in range(thresholds)], "largest")
    return torch.where(curves.isnan(), curves, (curves >= enough).float())
