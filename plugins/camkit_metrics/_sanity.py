"""What both randomisation tests do."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from camkit_metrics._similarity import spearman


def groups(layers: Sequence[str], stages: int) -> list[tuple[str, ...]]:
    """The layers from the output to the image, in so many parts of equal length; fewer where there are fewer layers."""
    backwards = layers[::-1]
    parts = np.array_split(np.arange(len(backwards)), min(stages, len(backwards)))
    return [tuple(backwards[place] for place in part) for part in parts]


def likeness(maps: Tensor, others: Tensor, absolute: bool) -> Tensor:
    """The rank correlation of maps [B, h, w] with others, [B]."""
    return spearman(maps.abs(), others.abs()) if absolute else spearman(maps, others)
