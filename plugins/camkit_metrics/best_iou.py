"""The IoU of boxes at the threshold that suits a method best over the data set."""

from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from camkit import plugin
from camkit.metrics import nanmean
from camkit_metrics._boxes import Around, iou_curve


def highest_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest of the means over the samples, one for each threshold: [methods, n, thresholds] to [methods]."""
    return np.asarray(nanmean(values, axis=1).max(axis=-1))


@plugin.metric("best_iou", paper="arXiv:2001.07437", higher_is_better=True, unit="share", reduce=highest_mean)
def best_iou(
    heatmaps: Tensor, boxes: list[Tensor], *, thresholds: Annotated[int, Ge(1)] = 100, around: Around = "largest"
) -> Tensor:
    """Best-threshold IoU: the mean box IoU at the one threshold that is best for the method over the whole data set.

    max over t of the mean over samples of IoU(t), for t = 0, 1/n, 2/n … with n = `thresholds`: as MaxBoxAcc, with the
    IoU itself in place of whether it is enough. Definition ``best-iou/1``.

    A sample's values are its IoU at each threshold, [B, n]. `around`: as for box_iou. NaN: as for box_iou.
    """
    return iou_curve(heatmaps, boxes, [step / thresholds for step in range(thresholds)], around)
