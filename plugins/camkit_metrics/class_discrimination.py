"""Whether a map tells the asked class from another one in the same picture."""

import torch
from torch import Tensor

from camkit import plugin
from camkit.metrics import is_flat, judged


@plugin.metric("class_discrimination", paper="arXiv:1610.02391", higher_is_better=True, unit="share")
def class_discrimination(heatmaps: Tensor, regions: Tensor, other_regions: Tensor) -> Tensor:
    """Class discrimination: whether the map is higher in the asked class's boxes than in those of other classes.

    1 where the heatmap's maximum over the boxes of the asked class alone is above its maximum over the boxes of other
    classes alone, 0 where it is below, 1/2 where they are equal. It puts a number to what the paper asks people in
    section 5.1. Definition ``class-discrimination/1``.

    Where each class of a picture is asked for in turn, a map that is the same for every class gets exactly 1/2. NaN: a
    flat heatmap, and a sample where one of the two has no pixel for itself.
    """

    def highest(where: Tensor) -> Tensor:
        return heatmaps.masked_fill(~where, -torch.inf).amax(dim=(1, 2))

    asked, other = regions & ~other_regions, other_regions & ~regions
    difference = highest(asked) - highest(other)
    known = asked.flatten(1).any(dim=1) & other.flatten(1).any(dim=1) & ~is_flat(heatmaps)
    return judged((difference.sign() + 1) / 2, known)
