"""Complexity (Poppi et al. 2021, arXiv:2104.10252)."""

from torch import Tensor

from camkit import plugin
from camkit.metrics import is_flat, judged


@plugin.metric("complexity", paper="arXiv:2104.10252", higher_is_better=False, unit="share")
def complexity(heatmaps: Tensor) -> Tensor:
    """Complexity: how much of the image the heatmap lights up.

    The L1 norm of the heatmap in [0, 1], over the number of its pixels: its mean. Definition ``complexity/1``.

    A map of one bright pixel has nearly 0, which is no virtue by itself. NaN: a flat heatmap.
    """
    return judged(heatmaps.mean(dim=(1, 2)), ~is_flat(heatmaps))
