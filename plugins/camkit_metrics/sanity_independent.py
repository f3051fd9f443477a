"""The independent randomisation test (Adebayo et al., NeurIPS 2018, arXiv:1810.03292)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.metrics import Explain
from camkit_metrics._sanity import groups, likeness


@plugin.metric("sanity_independent", paper="arXiv:1810.03292", higher_is_better=False, unit="rank correlation")
def sanity_independent(
    maps: Tensor,
    images: Tensor,
    explain: Explain,
    *,
    stages: Annotated[int, Ge(1)] = 4,
    absolute: bool = False,
    seed: int = 0,
) -> Tensor:
    """Independent randomisation: how much of the map is left when one part of the model is randomised at a time.

    As sanity_cascade, but in each stage the other parts keep their trained weights. Definition
    ``sanity-independent/1``.

    A sample's values are those of the parts from the top down, [B, n] with n = `stages`; the mean counts. Options, and
    what is NaN: as for sanity_cascade.
    """
    found = [
        likeness(maps, explain.randomised(part, seed).maps(images), absolute) for part in groups(explain.layers, stages)
    ]
    return torch.stack(found, dim=1)
