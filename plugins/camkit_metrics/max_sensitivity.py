"""Max-sensitivity (Yeh et al., NeurIPS 2019, arXiv:1901.09392)."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from camkit import plugin
from camkit.metrics import Explain, Space, is_flat, judged


@plugin.metric("max_sensitivity", paper="arXiv:1901.09392", higher_is_better=False, unit="relative change")
def max_sensitivity(
    heatmaps: Tensor,
    maps: Tensor,
    images: Tensor,
    pixels: Tensor,
    explain: Explain,
    *,
    radius: Annotated[float, Gt(0)] = 0.02,
    samples: Annotated[int, Ge(1)] = 10,
    of: Literal["heatmaps", "maps"] = "heatmaps",
    relative: bool = True,
    space: Space = "images",
    seed: int = 0,
) -> Tensor:
    """Max-sensitivity: how far the map moves at most when the image moves by next to nothing (definition 2).

    The largest norm of e(x + d) - e(x) over `samples` draws of d, uniform in [-radius, radius] for each value, with e
    the `of`: the ``heatmaps``, or the signed ``maps``. Definition ``max-sensitivity/1``.

    `relative` divides by the norm of e(x), as captum does; otherwise maps of other scales cannot be compared. `space`
    says whether the normalised ``images`` or ``pixels`` move. All samples move by the same draws. NaN: a flat heatmap.
    """
    before, seen = (heatmaps if of == "heatmaps" else maps), (images if space == "images" else pixels)
    again = explain.heatmaps if of == "heatmaps" else explain.maps
    generator = torch.Generator().manual_seed(seed)
    largest = torch.zeros_like(before[:, 0, 0])
    for _ in range(samples):
        moved = seen + radius * (2 * torch.rand(seen.shape[1:], generator=generator).to(seen) - 1)
        largest = torch.maximum(largest, (again(moved, space=space) - before).flatten(1).norm(dim=1))
    return judged(largest / before.flatten(1).norm(dim=1) if relative else largest, ~is_flat(heatmaps))
