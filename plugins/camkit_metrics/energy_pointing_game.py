"""The energy-based pointing game (Wang et al. 2020, Score-CAM, arXiv:1910.01279)."""

from torch import Tensor

from camkit import plugin
from camkit.metrics import is_flat, judged


@plugin.metric("energy_pointing_game", paper="arXiv:1910.01279", higher_is_better=True, unit="share")
def energy_pointing_game(heatmaps: Tensor, regions: Tensor) -> Tensor:
    """Energy-based pointing game: the share of the heatmap's sum that lies in the boxes of the class.

    sum of L in the boxes / (sum of L in the boxes + sum of L outside). Definition ``energy-pointing-game/1``.

    An even map gets the boxes' share of the image. NaN: a flat heatmap, a sample without boxes.
    """
    total = heatmaps.sum(dim=(1, 2))
    inside = (heatmaps * regions).sum(dim=(1, 2))
    return judged(inside / total, regions.flatten(1).any(dim=1) & ~is_flat(heatmaps))
