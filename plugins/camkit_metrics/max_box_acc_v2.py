"""MaxBoxAccV2 (Choe et al. 2020, arXiv:2007.04178)."""

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from camkit import plugin
from camkit.metrics import nanmean
from camkit_metrics._boxes import iou_curve

ENOUGH = (0.3, 0.5, 0.7)


def mean_of_highest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the demands of the highest mean over samples: [methods, n, 3, thresholds] to [methods]."""
    return np.asarray(nanmean(values, axis=1).max(axis=-1).mean(axis=-1))


@plugin.metric("max_box_acc_v2", paper="arXiv:2007.04178", higher_is_better=True, unit="share", reduce=mean_of_highest)
def max_box_acc_v2(heatmaps: Tensor, boxes: list[Tensor], *, thresholds: Annotated[int, Ge(1)] = 100) -> Tensor:
    """MaxBoxAccV2: MaxBoxAcc with a box around each component, averaged over an IoU of 0.3, 0.5 and 0.7.

    For each demand the share of samples of which some box of the map fits some box of the class, at the threshold that
    is best over the data set for that demand; then the mean of the three. Definition ``max-box-acc-v2/1``.

    A sample's values are 1 or 0 for each demand and threshold, [B, 3, n] with n = `thresholds`. NaN: as for
    max_box_acc.
    """
    curves = iou_curve(heatmaps, boxes, [step / thresholds for step in range(thresholds)], "each").unsqueeze(1)
    fits = (curves >= torch.tensor(ENOUGH)[:, None]).float()
    return torch.where(curves.isnan(), curves, fits)
