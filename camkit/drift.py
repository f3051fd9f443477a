"""How far explanations have moved: pure functions of maps and heatmaps before and after.

What cannot be judged, such as the ranks of a map that is the same everywhere, is NaN.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from camkit.explanation import Explanation
from camkit.statistics import Interval, bootstrap
from camkit.steerable import strongest


@dataclass(frozen=True)
class Drift:
    """How much of an explanation is left, one value [B] for each image.

    Attributes:
        iou: of the maps' strongest fifths, in [0, 1]; 1 where they are the same.
        rank_correlation: of the maps' positions, in [-1, 1]; 1 where their order is the same.
        ssim: structural similarity of the heatmaps, in [-1, 1]; 1 where they are the same.
        centre_shift: by how much the heatmaps' centre of mass moved, in diagonals of the image; 0 where it did not.
    """

    iou: Tensor
    rank_correlation: Tensor
    ssim: Tensor
    centre_shift: Tensor

    @classmethod
    def between(cls, before: Explanation, after: Explanation) -> "Drift":
        """The drift from one explanation of kind ``map`` to another of the same method, layer and classes."""
        return cls(
            iou(before.maps, after.maps),
            rank_correlation(before.maps, after.maps),
            structural_similarity(before.heatmaps, after.heatmaps),
            centre_shift(before.heatmaps, after.heatmaps),
        )


def iou(before: Tensor, after: Tensor, share: float = 0.2) -> Tensor:
    """Intersection over union of the strongest positions of maps [B, h, w], [B] in [0, 1]; NaN where a map is flat.

    Strongest are `share` of all positions, as for the top-k intersection of Ghorbani et al. (arXiv:1710.10547,
    section 2), which divides by the number of positions in place of the union.
    """
    first, second = strongest(before, share), strongest(after, share)
    shared = (first & second).flatten(1).sum(dim=1) / (first | second).flatten(1).sum(dim=1)
    return _judged(shared, _flat(before) | _flat(after))


def rank_correlation(before: Tensor, after: Tensor) -> Tensor:
    """Spearman's rank correlation of maps [B, h, w], [B] in [-1, 1]; ties share their mean rank, a flat map gives NaN.

    The measure of Adebayo et al. (arXiv:1810.03292, section 3) and of Ghorbani et al. (arXiv:1710.10547, section 2).
    """
    # it imports every metric that it has, which takes seconds
    from torchmetrics.functional.regression import spearman_corrcoef

    first, second = before.flatten(1).T.contiguous(), after.flatten(1).T.contiguous()
    return _judged(spearman_corrcoef(first, second).reshape(len(before)), _flat(before) | _flat(after))


def structural_similarity(before: Tensor, after: Tensor) -> Tensor:
    """SSIM of heatmaps [B, H, W] in [0, 1], [B] in [-1, 1] (Wang et al. 2004, eq. 13, Gaussian window, sigma 1.5).

    The mean over the windows of 11x11 that lie within the image, as in the paper and in scikit-image. The constants
    keep it defined where heatmaps are flat; it is NaN where a side is shorter than a window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(before.shape[1:]) < _WINDOW:
        return torch.full((len(before),), torch.nan, device=before.device)
    _, everywhere = structural_similarity_index_measure(
        after[:, None], before[:, None], data_range=1.0, reduction="none", return_full_image=True
    )
    edge = _WINDOW // 2
    found: Tensor = everywhere[:, 0, edge:-edge, edge:-edge].mean(dim=(1, 2))
    return found


def centre_shift(before: Tensor, after: Tensor) -> Tensor:
    """How far the centre of mass of heatmaps [B, H, W] (not negative) moved, in diagonals of the image, [B] in [0, 1].

    NaN where a heatmap is zero everywhere.
    """
    moved: Tensor = torch.linalg.vector_norm(_centre(after) - _centre(before), dim=1)
    return moved / float(np.hypot(*before.shape[1:]))


def energy_inside(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """The share of heatmaps' sum (not negative, [B, H, W]) that lies in regions, bool [B, H, W]; [B] in [0, 1].

    The energy-based pointing game (Wang et al., arXiv:1910.01279, section 4.2). NaN where there is no region, or the
    heatmap is zero everywhere.
    """
    whole = heatmaps.flatten(1).sum(dim=1)
    inside = (heatmaps * regions).flatten(1).sum(dim=1)
    return _judged(inside / whole, (whole == 0) | ~regions.flatten(1).any(dim=1))


def detection(clean: ArrayLike, attacked: ArrayLike) -> Interval:
    """How well a value tells attacked images from clean ones: the area under the ROC curve, with its interval.

    That is the chance that an attacked image has the larger value, ties counted half (Hanley and McNeil 1982): 0.5 is
    guessing, and below it the clean ones have the larger values. Images are drawn again as pairs, for an attacked
    image resembles its own original.

    Args:
        clean: [n], the value of each image before the attack.
        attacked: [n], of the same images after it; pairs with a NaN are left out.
    """
    before, after = (np.asarray(values, dtype=np.float64).ravel() for values in (clean, attacked))
    judged = np.isfinite(before) & np.isfinite(after)
    before, after = before[judged], after[judged]
    count = len(before)
    wins = (after[:, None] > before) + 0.5 * (after[:, None] == before)

    def area(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = drawn.reshape(-1, count).astype(np.int64)
        places = rows + count * np.arange(len(rows))[:, None]
        times = np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape)
        return np.asarray(((times @ wins) * times).sum(axis=1) / count**2).reshape(drawn.shape[:-1])

    return bootstrap(np.arange(count), area)


_WINDOW = 11


def _flat(maps: Tensor) -> Tensor:
    values = maps.flatten(1)
    return values.amax(dim=1) == values.amin(dim=1)


def _judged(values: Tensor, left_out: Tensor) -> Tensor:
    return torch.where(left_out, torch.full_like(values, torch.nan), values)


def _centre(heatmaps: Tensor) -> Tensor:
    """Row and column of the centre of mass, [B, 2]."""
    rows, columns = (torch.arange(side, device=heatmaps.device, dtype=heatmaps.dtype) for side in heatmaps.shape[1:])
    whole = heatmaps.sum(dim=(1, 2))
    return torch.stack([heatmaps.sum(dim=2) @ rows, heatmaps.sum(dim=1) @ columns], dim=1) / whole[:, None]
