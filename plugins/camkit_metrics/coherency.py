"""Coherency (Poppi et al. 2021, arXiv:2104.10252)."""

from torch import Tensor

from camkit import plugin
from camkit.metrics import Explain, Space, is_flat, judged
from camkit_metrics._similarity import pearson


@plugin.metric("coherency", paper="arXiv:2104.10252", higher_is_better=True, unit="share")
def coherency(heatmaps: Tensor, images: Tensor, pixels: Tensor, explain: Explain, *, space: Space = "images") -> Tensor:
    """Coherency: whether the map of what the map shows is the same map.

    Pearson's correlation of the heatmap L of x with that of x times L, brought from [-1, 1] to [0, 1], as the authors'
    code does: (r + 1) / 2. Definition ``coherency/1``.

    `space`: what is multiplied, the normalised ``images`` or ``pixels``. Where the second heatmap is flat, nothing of
    the map has lasted: 0. NaN: a flat first heatmap.
    """
    seen = images if space == "images" else pixels
    again = explain.heatmaps(seen * heatmaps.unsqueeze(1), space=space)
    similar = (pearson(heatmaps, again) + 1) / 2
    return judged(similar.nan_to_num(nan=0.0), ~is_flat(heatmaps))
