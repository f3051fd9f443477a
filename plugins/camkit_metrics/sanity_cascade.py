"""The cascading randomisation test (Adebayo et al., NeurIPS 2018, arXiv:1810.03292)."""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from camkit import plugin
from camkit.metrics import Explain
from camkit_metrics._sanity import groups, likeness


@plugin.metric("sanity_cascade", paper="arXiv:1810.03292", higher_is_better=False, unit="rank correlation")
def sanity_cascade(
    maps: Tensor,
    images: Tensor,
    explain: Explain,
    *,
    stages: Annotated[int, Ge(1)] = 4,
    absolute: bool = False,
    seed: int = 0,
) -> Tensor:
    """Cascading randomisation: how much of the map is left when the model's layers are randomised from the top down.

    Spearman's rank correlation of the signed map with that by a copy of the model whose last layers are drawn anew: the
    last 1/n, 2/n, … all of them, n = `stages`. Definition ``sanity-cascade/1``.

    A sample's values are those of the stages, [B, n]; the mean counts. What stays like 1 does not depend on what the
    model has learnt. Drawn are all parameters of a layer, normal with the mean and deviation they had (the paper draws
    them as for a new model). `absolute` compares sizes without signs. NaN: a stage whose map is flat.
    """
    parts = groups(explain.layers, stages)
    found = [
        likeness(maps, explain.randomised(sum(parts[: place + 1], ()), seed).maps(images), absolute)
        for place in range(len(parts))
    ]
    return torch.stack(found, dim=1)
